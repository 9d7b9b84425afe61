import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tvau_edge.reference.narration import QUESTIONS
from tvau_edge.reference.prompts import CLASS_PROMPTS
from tvau_edge.reference.tokenizer import SPECIAL, VOCABULARY, train_tokenizer
from tvau_edge.reference.train import texts

SENTENCES = [
    "A person in a red jacket is running from the middle left to the middle right.",
    "It's 14:05:59 on 2024-02-29; they're 3.14159 m away!?",
    "Überraschung: naïve café, Привет, 监控摄像头, 🙂🚀",
    "  two  spaces,\ttabs\n\nand new lines \n ",
    "",
]


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts(drawn), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_is_encoded_is_decoded(tokenizer, sentence):
    assert tokenizer.decode(tokenizer.encode(sentence).ids) == sentence


def test_control_tokens_are_single_and_within_the_vocabulary(tokenizer):
    for token in SPECIAL:
        assert len(tokenizer.encode(token).ids) == 1
        assert tokenizer.token_to_id(token) < VOCABULARY


def test_digits_stand_alone_as_in_qwen2(tokenizer):
    assert len(tokenizer.encode("2024").ids) == 4


@pytest.mark.parametrize("sentence", SENTENCES)
def test_transformers_reads_the_same_tokens(folder, tokenizer, sentence):
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(sentence, add_special_tokens=False) == tokenizer.encode(sentence).ids


def test_the_chat_template_is_qwens_form(folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": "Watch."}, {"role": "user", "content": "Who?"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = (
        "<|im_start|>system\nWatch.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text == expected


def test_the_tokenizer_is_trained_on_all_that_is_said(drawn):
    said = set(texts(drawn))
    assert {question.text for question in QUESTIONS} <= said
    assert set(CLASS_PROMPTS["abnormal"]) <= said
    assert all(window.narration in said for sample in drawn for window in sample.windows)
