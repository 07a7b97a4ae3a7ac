"""One prompt and its knobs, and one sample of its continuation from first token to completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engine.adapters.lora import Adapter
from engine.seeds import mix
from engine.serving.constraint import TrieNode
from engine.serving.sampling_params import SamplingParams
from engine.serving.sequence import Sequence
from engine.serving.stop import StopStrings
from engine.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of one sample.

    Attributes:
        ids: every generated token, the one that ended the text included: an end-of-text id, a
            stop id, or the token that completed a stop string.
        text: of the ids, without special tokens, stop id, and all from the stop string on.
        logprobs: of each id, natural logarithm, under the model's own distribution (that is before
            bias, penalties, temperature, filters and `allowed`).
        top_logprobs: the most likely tokens of each position under it; None unless asked for.
        finish_reason: "stop"; "length" at max_tokens or at the end of the context; "error".
        stop: the string or id that ended it; for `allowed`, the string that was chosen.
        error: what went wrong, in one line.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them were found in the prefix cache.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[int, float], ...] | None
    finish_reason: FinishReason
    stop: str | int | None
    error: str | None
    prompt_tokens: int
    cached_tokens: int


@dataclass(slots=True, eq=False)
class Request:
    """A prompt with everything that its samples share.

    Args:
        index: place among the call's prompts.
        limit: the most tokens to generate, by max_tokens and context.
        end_ids: tokens that end the text.
        trie: what is allowed; None for any text.
    """

    index: int
    prompt: list[int]
    params: SamplingParams
    adapter: Adapter | None
    tokenizer: Tokenizer
    limit: int
    end_ids: frozenset[int]
    trie: TrieNode | None
    seed: int = field(init=False)
    distinct: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.seed = mix(self.params.seed, *self.prompt)
        self.distinct = list(set(self.prompt))

    def sample(self, number: int, leader: Sample | None = None) -> Sample:
        """Sample `number`; all but the first fork from the first, their leader."""
        stop = self.params.stop
        return Sample(
            tokens=list(self.prompt),
            adapter=self.adapter,
            place=(self.index, number),
            width=1 if leader else self.params.n,
            request=self,
            leader=leader,
            seed=mix(self.seed, number),
            stops=StopStrings(self.tokenizer, stop) if stop and self.trie is None else None,
            node=self.trie,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Sample(Sequence):
    """A sequence being generated; its random numbers depend on `seed` and position alone."""

    request: Request
    leader: Sample | None
    seed: int
    stops: StopStrings | None
    node: TrieNode | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    stop: str | int | None = None
    error: str | None = None

    @property
    def allowed(self) -> list[int]:
        """Ids that may be drawn next; empty for all."""
        return self.node.ids if self.node is not None else []

    @property
    def seen(self) -> list[int]:
        """Ids that the repetition penalty touches."""
        if self.request.params.repetition_penalty == 1.0:
            return []
        return self.request.distinct + self.ids

    @property
    def generated(self) -> list[int]:
        """Ids that the frequency and presence penalties count."""
        params = self.request.params
        return self.ids if params.frequency_penalty or params.presence_penalty else []

    def accept(self, token: int, logprob: float) -> bool:
        """Takes the next token (-1: none could be drawn); whether the sample is finished."""
        if token < 0:
            self.finish_reason = "error"
            self.error = (
                f"no token can be drawn at position {len(self.ids)}: "
                "the logits are not finite, or the knobs leave no token"
            )
            return True
        self.ids.append(token)
        self.logprobs.append(logprob)
        if self._stopped(token):
            self.finish_reason = "stop"
            return True
        return len(self.ids) >= self.request.limit

    def completion(self) -> Completion:
        """The finished sample."""
        text = self._text()  # may find a stop string in what was held back
        return Completion(
            ids=tuple(self.ids),
            text=text,
            logprobs=tuple(self.logprobs),
            top_logprobs=tuple(self.top_logprobs) if self.request.params.logprobs else None,
            finish_reason=self.finish_reason,
            stop=self.stop,
            error=self.error,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=max(self.cached, 0),
        )

    def _stopped(self, token: int) -> bool:
        if self.node is not None:
            following = self.node.next.get(token)
            if following is None or following.complete:  # an end-of-text token, or a whole string
                self.stop = (following or self.node).text
                return True
            self.node = following
        if token in self.request.end_ids:
            self.stop = token
            return True
        if self.stops is not None:
            self.stops.put(token)
            self.stop = self.stops.found
        return self.stop is not None

    def _text(self) -> str:
        if self.node is not None and isinstance(self.stop, str):
            return self.stop
        if self.stops is None:
            kept = self.ids[:-1] if isinstance(self.stop, int) else self.ids
            return self.request.tokenizer.decode_continuation(kept)
        self.stops.finish()
        if self.stop is None and self.stops.found is not None:
            self.finish_reason, self.stop = "stop", self.stops.found
        return self.stops.text
