"""The engine in a minute: load, chat, score, train on ten lines, save, reload.

Run: python examples/engine_tour.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import engine
from engine import LoraConfig, SamplingParams, TrainConfig, TrainExample

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Cuba": "Havana",
    "Greece": "Athens",
    "Iraq": "Baghdad",
    "Ghana": "Accra",
}


def ask(country: str) -> str:
    return f"Country: {country}\nCapital:"


llm = engine.load("smollm2-135m")  # fetched once, then read from the cache
greedy = SamplingParams(temperature=0, max_tokens=40, stop=("\n",))

chat = llm.tokenizer.render_chat([{"role": "user", "content": "Name three colours."}])
print("chat:", llm.generate([chat], SamplingParams(temperature=0, max_tokens=40))[0].text)

labels = [" Madrid", " Lisbon", " Berlin"]
for label, scored in zip(labels, llm.score([ask("Spain")], [labels])[0], strict=True):
    print(f"score: log p({label!r}) = {scored.logprob:.2f}")

examples = [TrainExample(ask(c), f" {city}!") for c, city in CAPITALS.items()]
llm.adapters.new("capitals", LoraConfig(rank=8))
result = llm.train(examples, TrainConfig(epochs=8, batch_size=5, lr=1e-3), adapter="capitals")
print(f"train: loss {result.losses[0]:.2f} -> {result.losses[-1]:.2f} in {result.seconds:.0f} s")

with tempfile.TemporaryDirectory() as folder:
    llm.adapters.save("capitals", Path(folder))
    llm.adapters.drop("capitals")
    llm.adapters.load(Path(folder), "capitals")

for adapter in (None, "capitals"):
    answer = llm.generate([ask("Spain")], greedy, adapter=adapter)[0].text
    print(f"{adapter or 'no adapter'}:{answer}")
