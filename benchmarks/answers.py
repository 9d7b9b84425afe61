"""How good the dialogue's answers are: corpus BLEU-4 and Yes/No accuracy."""

from collections.abc import Sequence

import sacrebleu


def bleu4(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 in 0..100, by sacrebleu (13a tokenizer, lower case).

    Args:
        answers: one answer per question.
        references: for each answer, the wordings that are right; one or several.

    Raises:
        ValueError: no answers, or an answer without a reference.
    """
    if not answers or len(answers) != len(references) or not all(references):
        raise ValueError(f"{len(answers)} answers and {len(references)} lists of references do not pair up")
    most = max(len(wordings) for wordings in references)
    columns = [[wordings[k] if k < len(wordings) else None for wordings in references] for k in range(most)]
    return float(sacrebleu.corpus_bleu(list(answers), columns, lowercase=True).score)


def accuracy(answers: Sequence[bool], truth: Sequence[bool]) -> float:
    """Share of right Yes/No answers, 0..1."""
    if not truth or len(answers) != len(truth):
        raise ValueError(f"{len(answers)} answers for {len(truth)} questions")
    return sum(answer == right for answer, right in zip(answers, truth, strict=True)) / len(truth)
