"""Draws a token for every row of a batch; each row has its own knobs and its own random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dispatch import implementation
from kernels.philox import uniform
from kernels.upload import upload


def _offsets(lengths: Iterable[int], device: torch.device | str | None) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64, device=device)


@dataclass(frozen=True)
class IdLists:
    """A list of token ids for each row: row r owns `ids[offsets[r]:offsets[r + 1]]`.

    offsets: `[R + 1]` int64; ids: `[N]` int64, within the vocabulary.
    """

    offsets: Tensor
    ids: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device | str | None = None) -> IdLists:
        flat = [token for row in rows for token in row]
        ids = torch.tensor(flat, dtype=torch.int64, device=device)
        return cls(_offsets(map(len, rows), device), ids)


@dataclass(frozen=True)
class Biases:
    """A bias for some token ids of each row: row r adds `values` to the logits of `ids`.

    offsets: `[R + 1]` int64; ids: `[N]` int64, distinct within a row; values: `[N]` fp32.
    """

    offsets: Tensor
    ids: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[int, float]], device: torch.device | str | None = None
    ) -> Biases:
        keys = IdLists.of([list(row) for row in rows], device)
        flat = [value for row in rows for value in row.values()]
        values = torch.tensor(flat, dtype=torch.float32, device=device)
        return cls(keys.offsets, keys.ids, values)


@dataclass(frozen=True)
class SampleParams:
    """How each row is drawn; see `sample` for the order in which the knobs act.

    temperature: `[R]` fp32 >= 0; 0 takes the most likely token, and the filters (top_k, top_p,
        min_p) then change nothing.
    top_k: `[R]` int32; 0 (or the vocabulary's size and more) is off.
    top_p: `[R]` fp32; 1 is off.
    min_p: `[R]` fp32; 0 is off.
    repetition_penalty: `[R]` fp32 > 0; 1 is off.
    frequency_penalty: `[R]` fp32; 0 is off. presence_penalty: `[R]` fp32; 0 is off.
    seed: `[R]` int64; position: `[R]` int64. The random number is a function of these two.
    bias: added to the logits.
    seen: ids that the repetition penalty touches, each once however often it is listed.
    generated: ids that the frequency and presence penalties touch; they count as often as listed.
    allowed: ids that may be drawn; an empty row may draw any.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor
    seed: Tensor
    position: Tensor
    bias: Biases
    seen: IdLists
    generated: IdLists
    allowed: IdLists

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor and its name, such as `top_k` or `seen.ids`, in the order of the fields."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield name, value
            else:
                yield from ((f"{name}.{part}", each) for part, each in vars(value).items())

    def to(self, device: torch.device) -> SampleParams:
        """The same on `device`, from the host in one copy that nobody waits for."""
        if device.type == "cpu":
            return self
        moved = iter(upload([tensor.numpy() for _, tensor in self.tensors()], device))

        def there(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(moved)
            return type(value)(*islice(moved, len(vars(value))))

        return SampleParams(**{name: there(value) for name, value in vars(self).items()})

    @classmethod
    def neutral(cls, rows: int, device: torch.device | str | None = None) -> SampleParams:
        """Plain sampling from the model's distribution, with seed and position 0."""

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        one, off, zero = full(1, torch.float32), full(0, torch.float32), full(0, torch.int64)
        nothing = IdLists.of([()] * rows, device)
        return cls(
            temperature=one,
            top_k=full(0, torch.int32),
            top_p=one,
            min_p=off,
            repetition_penalty=one,
            frequency_penalty=off,
            presence_penalty=off,
            seed=zero,
            position=zero,
            bias=Biases.of([{}] * rows, device),
            seen=nothing,
            generated=nothing,
            allowed=nothing,
        )


_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "repetition_penalty": torch.float32,
    "frequency_penalty": torch.float32,
    "presence_penalty": torch.float32,
    "seed": torch.int64,
    "position": torch.int64,
}


def _check_logits(logits: Tensor) -> None:
    expect("logits", logits, ("R", "V"), (torch.float32, torch.float64))
    if logits.shape[1] == 0:
        raise ValueError("logits: the vocabulary is empty")


def _check_params(logits: Tensor, params: SampleParams) -> None:
    rows = len(logits)
    for name, value in vars(params).items():
        if not isinstance(value, Tensor) and value.offsets.shape != (rows + 1,):
            raise ValueError(f"{name}: expected {rows} rows, got {value.offsets.numel() - 1}")
    for name, tensor in params.tensors():
        dtype, size = _DTYPES.get(name), rows
        if dtype is None:  # of a list, whose sizes are its own
            dtype = torch.float32 if name == "bias.values" else torch.int64
            size = params.bias.ids.numel() if name == "bias.values" else tensor.numel()
        expect(name, tensor, (size,), (dtype,), logits.device)


def sample(logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
    """Draws one token per row.

    In this order (names and meanings as in Hugging Face's generate, those of the frequency and
    presence penalties as in OpenAI's API, their place as in vLLM): logit bias; repetition penalty
    (a seen logit is divided by it if positive, else multiplied); frequency and presence penalty;
    allowed ids; temperature; top_k; top_p; min_p. Then inverse transform sampling in the order of
    token ids, with one number of `kernels.philox.uniform(seed, position)`.

    * A generated token that is listed c times loses frequency_penalty * c + presence_penalty.
    * top_k keeps the k largest logits, and all that tie with the k-th.
    * top_p keeps the smallest set of most likely tokens whose probability reaches p, at least
      one, and all that tie with the last; probabilities are those of the top_k survivors.
    * min_p keeps tokens with at least min_p times the largest probability.
    * temperature 0 takes the largest logit among the allowed; the lowest id wins a tie.

    Args:
        logits: `[R, V]` fp32 (or float64, for the reference), elements of a row contiguous. Left
            unchanged.
        params: one setting per row, on the device of `logits`; ids must be below V.

    Returns:
        tokens `[R]` int64, and their log-probabilities `[R]` fp32 under the softmax of the
        unmodified logits. Where nothing can be drawn (a logit is NaN or +inf, or all, or all that
        are allowed, are -inf) the token is -1 and its log-probability -inf.
        A row depends on nothing but its own logits and settings.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    _check_logits(logits)
    _check_params(logits, params)
    return implementation("sample", logits)(logits, params)


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely tokens of each row, under the softmax of the logits.

    Args:
        logits: `[R, V]` fp32 (or float64, for the reference).
        k: 1 to V.

    Returns:
        log-probabilities `[R, k]` fp32, descending, and token ids `[R, k]` int64; the lower id
        first where they tie. Rows that `sample` cannot draw from hold -inf and -1. On a GPU, k
        above 64 sorts the whole rows.

    Raises:
        ValueError: shape, dtype or k does not fit.
    """
    _check_logits(logits)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k: expected 1 to {logits.shape[1]}, got {k}")
    return implementation("top_logprobs", logits)(logits, k)


def _row_of(lists: IdLists | Biases) -> Tensor:
    """`[N]`: the row that each id belongs to."""
    lengths = lists.offsets.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _marked(lists: IdLists, like: Tensor) -> Tensor:
    """`[R, V]` bool: True at every listed id."""
    marks = torch.zeros_like(like, dtype=torch.bool)
    marks[_row_of(lists), lists.ids] = True
    return marks


def _counted(lists: IdLists, like: Tensor) -> Tensor:
    """`[R, V]`: how often each id is listed."""
    counts, at = torch.zeros_like(like), (_row_of(lists), lists.ids)
    return counts.index_put_(at, counts.new_ones(()), accumulate=True)


def _adjusted(logits: Tensor, params: SampleParams) -> Tensor:
    """Logits after bias and penalties."""
    bias = torch.zeros_like(logits)
    bias[_row_of(params.bias), params.bias.ids] = params.bias.values.to(logits.dtype)
    scores = logits + bias
    penalty = params.repetition_penalty[:, None].to(logits.dtype)
    penalised = torch.where(scores > 0, scores / penalty, scores * penalty)
    scores = torch.where(_marked(params.seen, logits), penalised, scores)
    counts = _counted(params.generated, logits)
    frequency = params.frequency_penalty[:, None].to(logits.dtype)
    presence = params.presence_penalty[:, None].to(logits.dtype)
    return scores - (frequency * counts + presence * (counts > 0))


def _filtered(scores: Tensor, params: SampleParams) -> Tensor:
    """`scores` (after temperature) with -inf where top_k, top_p or min_p drop a token."""
    vocab = scores.shape[1]
    ordered = scores.sort(dim=-1, descending=True).values
    k = torch.where(params.top_k > 0, params.top_k, vocab).clamp(max=vocab).long()
    threshold = ordered.gather(1, k[:, None] - 1)

    p = params.top_p[:, None].to(scores.dtype)
    weights = torch.where(ordered >= threshold, ordered, -torch.inf).softmax(-1)
    likelier = weights.cumsum(-1) - weights  # the probability of all that stand before
    nucleus = ((likelier < p).sum(-1, keepdim=True)).clamp(min=1)
    nucleus = torch.where(p < 1, nucleus, vocab)
    threshold = torch.maximum(threshold, ordered.gather(1, nucleus - 1))

    least = ordered[:, :1] + params.min_p[:, None].to(scores.dtype).log()
    return torch.where(scores >= torch.maximum(threshold, least), scores, -torch.inf)


def sample_reference(logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
    """The specification of `sample`, computed in float64."""
    raw = logits.double()
    scores = _adjusted(raw, params)
    drawable = scores.amax(-1, keepdim=True).isfinite()
    unrestricted = params.allowed.offsets.diff()[:, None] == 0
    scores = torch.where(unrestricted | _marked(params.allowed, scores), scores, -torch.inf)
    drawable &= scores.amax(-1, keepdim=True) > -torch.inf
    scores = torch.where(drawable, scores, 0.0)

    temperature = params.temperature[:, None].double()
    greedy = temperature == 0
    tempered = (scores - scores.amax(-1, keepdim=True)) / temperature.masked_fill(greedy, 1)
    kept = torch.where(greedy, tempered, _filtered(tempered, params))

    cdf = (kept - kept.amax(-1, keepdim=True)).exp().cumsum(-1)
    target = uniform(params.seed, params.position)[:, None].double() * cdf[:, -1:]
    drawn = (cdf > target).to(torch.int8).argmax(-1, keepdim=True)
    tokens = torch.where(greedy, kept.argmax(-1, keepdim=True), drawn)
    logprobs = raw.log_softmax(-1).gather(1, tokens)
    tokens = torch.where(drawable, tokens, -1)
    return tokens[:, 0], torch.where(drawable, logprobs, -torch.inf)[:, 0].float()


def top_logprobs_reference(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The specification of `top_logprobs`, computed in float64."""
    raw = logits.double()
    values, ids = raw.log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    drawable = raw.amax(-1, keepdim=True).isfinite()
    values, ids = values[:, :k], ids[:, :k]
    return torch.where(drawable, values, -torch.inf).float(), torch.where(drawable, ids, -1)
