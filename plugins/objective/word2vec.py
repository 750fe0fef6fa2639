"""Static embeddings by negative sampling (word2vec, FastText): a token table that any model can begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary
from llmlab_plugins.objective._subwords import Subwords, table, word_of

NOTHING = -1  # in `context` no token, in `real` a place that is not scored


class NegativeSampling:
    """The text of a sample, thinned out, and the loss that both objectives have."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        window: int,
        negatives: int,
        subsample: float,
        power: float,
        ngrams: Sequence[int] | None,
    ):
        if window < 1 or negatives < 1:
            raise ValueError(
                f"objective.window and objective.negatives must be at least 1, but they are {window} and {negatives}"
            )
        if not subsample >= 0 or not np.isfinite(power):
            raise ValueError(
                f"objective.subsample must be 0 (all tokens are kept) or more and objective.power a number, but they are "
                f"{subsample} and {power}"
            )
        if ngrams and not (len(ngrams) == 2 and 1 <= ngrams[0] <= ngrams[1]):
            raise ValueError(f"objective.ngrams must be [shortest, longest], as [3, 6], but is {list(ngrams)}")
        self.vocabulary = vocabulary
        self.subwords = Subwords(vocabulary, *ngrams) if ngrams else None
        # Of n-grams alone vectors of other words can be made.
        self.spelled = self._spelled if ngrams else None
        self.seq_len, self.window, self.negatives = seq_len, window, negatives
        self.special_ids = np.array(sorted(vocabulary.special.values()), dtype=np.int64)
        counts = np.ones(vocabulary.size) if vocabulary.counts is None else vocabulary.counts().astype(np.float64)
        # Special tokens are no words: they have no neighbours and are drawn as nobody's.
        counts[np.isin(np.arange(len(counts)), self.special_ids)] = 0
        if not counts.any():
            raise ValueError("the training text has no ordinary token, which negatives could be drawn from")
        share = counts / counts.sum()
        # Equation 5 of arXiv:1310.4546; word2vec.c keeps t / f more.
        self.kept = np.sqrt(np.divide(subsample, share, out=np.ones_like(share), where=share > 0)).clip(max=1)
        if not subsample:
            self.kept[:] = 1
        noise = np.where(counts > 0, np.power(np.maximum(counts, 1), power), 0)
        self.noise = np.cumsum(noise / noise.sum())

    def words(self, sample: Mapping[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(ids, documents) of the tokens of a sample that are kept, (n,) each."""
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.seq_len]
        keep = ~np.isin(tokens, self.special_ids) & (rng.random(len(tokens)) < self.kept[tokens])
        if sample.get("given") is not None:
            keep &= ~sample["given"][: self.seq_len]
        documents = sample.get("documents")
        own = np.zeros_like(tokens) if documents is None else np.asarray(documents, dtype=np.int64)[: self.seq_len]
        # Before windows are laid, as in word2vec.c: they reach over what was left out.
        return tokens[keep], own[keep]

    def neighbours(self, documents: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(places, there) (n, 2 window): the places around each word, and True where they are in its window and document.

        A word's window reaches 1 to `window` words to either side, each as likely.
        """
        n = len(documents)
        reach = rng.integers(1, self.window + 1, size=n)
        steps = np.concatenate([np.arange(-self.window, 0), np.arange(1, self.window + 1)])
        places = np.arange(n)[:, None] + steps
        inside = (places >= 0) & (places < n) & (np.abs(steps) <= reach[:, None])
        places = places.clip(0, max(n - 1, 0))
        return places, inside & (documents[places] == documents[:, None])

    def scored(self, words: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(ids, real) (groups, 1 + negatives): a word and what is drawn against it; 1 for the word, 0 for the drawn,
        `NOTHING` where there is none or the word itself was drawn."""
        drawn = np.searchsorted(self.noise, rng.random((len(words), self.negatives)), side="right")
        # The last sum may be a rounding below 1.
        drawn = drawn.clip(max=len(self.noise) - 1)
        # As in word2vec.c, which skips such a draw.
        real = np.where(drawn == words[:, None], NOTHING, 0)
        real = np.concatenate([np.ones((len(words), 1), np.int64), real], 1)
        return np.concatenate([words[:, None], drawn], 1), np.where(there[:, None], real, NOTHING)

    def filled(self, groups: int, context: np.ndarray, ids: np.ndarray, real: np.ndarray) -> dict[str, Any]:
        """Arrays of the size of a text from which nothing was left out."""
        more = groups - len(ids)
        context = np.concatenate([context, np.full((more, context.shape[1]), NOTHING)])
        return {
            "context": context,
            **({} if self.subwords is None else {"subwords": self.subwords.of(context)}),
            "ids": np.concatenate([ids, np.zeros((more, ids.shape[1]), np.int64)]).ravel(),
            "real": np.concatenate([real, np.full((more, real.shape[1]), NOTHING)]).ravel(),
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"sampled": int((prepared["real"] == 1).sum())}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"context": None})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"context": None})
        scores, real = output.heads["context"].float(), batch["real"]
        # Equation 4 of arXiv:1310.4546, summed over pairs.
        each = F.binary_cross_entropy_with_logits(scores, (real == 1).float(), reduction="none")
        count = (real == 1).sum()
        loss = torch.where(real != NOTHING, each, 0.0).sum()
        # Ranks, as with several negatives to a word hardly any score is above 0.
        rows_BGC, real_BGC = (t.detach().unflatten(1, (-1, 1 + self.negatives)) for t in (scores, real))
        first_BG = rows_BGC.masked_fill(real_BGC == NOTHING, -torch.inf).argmax(-1) == 0
        right = (first_BG & (real_BGC[..., 0] == 1)).sum()
        return Loss({"sampled": (loss, count)}, logs={"accuracy": (right, count)}, aux={"model": auxiliary(output)})

    @torch.no_grad()
    def vectors(self, model: nn.Module) -> Tensor:
        """(V, width): the token table, or of each token the mean of its vector and those of its n-grams."""
        head: Any = model.get_submodule("heads.context")
        weight: Tensor = head.words.weight
        if self.subwords is None:
            return weight
        # At a time, as of many words with long ones among them the hashes take more than the vectors.
        pieces = [
            head.mean(ids[:, None], torch.from_numpy(self.subwords.of(ids[:, None].numpy())).to(ids.device))
            for ids in torch.arange(self.vocabulary.size).split(4096)
        ]
        return torch.cat([*pieces, weight[self.vocabulary.size :]])

    @torch.no_grad()
    def _spelled(self, model: nn.Module, words: Sequence[str]) -> Tensor:
        """(n, width): of words as they are spelt, in the vocabulary or not, the mean of the vectors of their n-grams, and of
        their own where they have one."""
        assert self.subwords is not None
        known: dict[str, int] = {}
        for i in range(self.vocabulary.size):
            # Of two spellings that of a word behind a space.
            if (word := word_of(text := self.vocabulary.text(i))) and (word not in known or text[0] == " "):
                known[word] = i
        head: Any = model.get_submodule("heads.context")
        ids = torch.tensor([[known.get(word, NOTHING)] for word in words])
        both: Tensor = head.mean(ids, torch.from_numpy(table([self.subwords.hashes(word) for word in words])))
        return both


@register("objective", "fasttext", ngrams=(3, 6))
@register("objective", "skipgram")
class SkipGram(NegativeSampling):
    """Skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546): a word tells its neighbours.

    Only the model's token table and a second one learn; `init_from.embedding=RUN` begins any model with the first. Of each
    pair of a word and a word in its window the loss is -log s(u.v) - sum over negatives of log s(-u.v), in nats, with s the
    sigmoid. ids and real (T 2 window (1 + negatives),): a neighbour, then words drawn against it; context (T 2 window, 1).
    accuracy: the share of neighbours with a higher score than all that is drawn against them.

    fasttext: Skip-gram with subwords (Bojanowski et al. 2017, arXiv:1607.04606): a word is the mean of its vector and those of
    its character n-grams, so that words out of the vocabulary have vectors too (`llmlab export format=word2vec words=FILE`).
    context is then (T, 1), and subwords (T, most) has the hashes of its n-grams, -1 behind them.
    """

    mask = "bidirectional"
    heads = {"context": "context"}
    special = ()
    topologies = ("decoder", "encoder")
    measures = {"sampled": "loss", "accuracy": "accuracy"}
    learns = ("heads", "stacks.*.embedding.table")
    restores = "pairs"
    fixed_counts = False
    when = {"ngrams": {"heads": {"context": "subwords"}}}
    telling = (
        {"window": 2, "subsample": 0.0},
        {"negatives": 2, "subsample": 0.0},
        {"subsample": 0.01},
        {"subsample": 0.0},
        {"power": 0.0, "subsample": 0.0},
        {"window": 1, "negatives": 1, "power": 2.0},
        {"ngrams": (1, 3), "window": 1, "subsample": 0.0},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        window: int = 5,  # words on either side at most
        negatives: int = 5,  # words that are drawn against a neighbour
        subsample: float = 1e-3,  # words above this share of the text are kept the more rarely; 0: all are kept
        power: float = 0.75,  # of a word's count, to which its chance to be drawn is proportional
        ngrams: tuple[int, ...] | None = None,  # shortest and longest, of which a word's vector is made too; null: none
    ):
        super().__init__(vocabulary, seq_len, window, negatives, subsample, power, ngrams)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        words, documents = self.words(sample, rng)
        places, there = self.neighbours(documents, rng)
        ids, real = self.scored(words[places].ravel(), there.ravel(), rng)
        if self.subwords is not None:  # once for all neighbours, as a word has many n-grams
            shape = len(words), 2 * self.window * (1 + self.negatives)
            return self.filled(self.seq_len, words[:, None], ids.reshape(shape), real.reshape(shape))
        centres = np.where(there, words[:, None], NOTHING).reshape(-1, 1)
        return self.filled(self.seq_len * 2 * self.window, centres, ids, real)


@register("objective", "cbow")
class CBOW(NegativeSampling):
    """Continuous bag of words with negative sampling (Mikolov et al. 2013, arXiv:1301.3781): neighbours together tell a word.

    Only the model's token table and a second one learn; `init_from.embedding=RUN` begins any model with the first. The
    mean of the vectors of the words in a word's window scores that word and those drawn against it, with the loss of
    skipgram. ids and real (T (1 + negatives),): a word, then words drawn against it; context (T, 2 window). accuracy: the
    share of words with a higher score than all that is drawn against them.
    """

    mask = "bidirectional"
    heads = {"context": "context"}
    special = ()
    topologies = ("decoder", "encoder")
    measures = {"sampled": "loss", "accuracy": "accuracy"}
    learns = ("heads", "stacks.*.embedding.table")
    restores = "pairs"
    fixed_counts = False
    when = {"ngrams": {"heads": {"context": "subwords"}}}
    telling = (
        {"window": 2, "subsample": 0.0},
        {"negatives": 2, "subsample": 0.0},
        {"subsample": 0.01},
        {"subsample": 0.0},
        {"power": 0.0, "subsample": 0.0},
        {"window": 1, "negatives": 1, "power": 2.0},
        {"ngrams": (1, 3), "window": 1, "subsample": 0.0},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        window: int = 5,  # words on either side at most
        negatives: int = 5,  # words that are drawn against a word
        subsample: float = 1e-3,  # words above this share of the text are kept the more rarely; 0: all are kept
        power: float = 0.75,  # of a word's count, to which its chance to be drawn is proportional
        ngrams: tuple[int, ...] | None = None,  # shortest and longest, of which a word's vector is made too; null: none
    ):
        super().__init__(vocabulary, seq_len, window, negatives, subsample, power, ngrams)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        words, documents = self.words(sample, rng)
        places, there = self.neighbours(documents, rng)
        # A word that has no neighbour is not asked for.
        ids, real = self.scored(words, np.asarray(there.any(1)), rng)
        return self.filled(self.seq_len, np.where(there, words[places], NOTHING), ids, real)
