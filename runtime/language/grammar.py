"""What an answer may look like: a GBNF grammar for each question, made from the schema that answers fulfil.

llama.cpp allows no token that leaves the grammar, so that every answer parses, however a model was quantized and
whatever is in the question.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LONGEST = 400  # characters of an answer, as in the verdict

# One line of words with single spaces. Left out: control and format characters, spaces of other kinds, surrogates,
# private use, and what is no character.
_OUTSIDE = (
    r"\x00-\x20\x7F-\xA0\xAD\u0600-\u0605\u061C\u06DD\u070F\u0890\u0891\u08E2\u1680\u180E\u2000-\u200F\u2028-\u202F"
    r"\u205F-\u206F\u3000\uD800-\uF8FF\uFEFF\uFFF0-\uFFFF\U000110BD-\U000110CD\U00013430-\U0001343F"
    r"\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0000-\U0010FFFF"
)
_WORDS = f'root ::= word (" " word)*\nword ::= [^{_OUTSIDE}]+\n'

FreeText = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST, pattern=r"^\S+( \S+)*$")]


class Answers(BaseModel):
    """The answers to the paper's questions, as a model may give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anomaly: Literal["Yes.", "No."] | None = None
    target: FreeText | None = None
    motion: FreeText | None = None
    from_: Annotated[FreeText | None, Field(alias="from")] = None
    to: FreeText | None = None


def answer_grammar(key: str) -> str:
    """The grammar (GBNF) of the answer to a question of the manifest, or to one of a stranger's ("question")."""
    properties: dict[str, Any] = Answers.model_json_schema()["properties"]
    return gbnf(properties[key]) if key in properties else _WORDS


def gbnf(schema: dict[str, Any]) -> str:
    """The grammar of a value that is one of some strings, or a line of text, by its JSON Schema.

    Raises:
        ValueError: the schema is of another kind.
    """
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    if len(kinds) == 1 and kinds[0].get("type") == "string":
        if "enum" not in kinds[0]:
            return _WORDS
        return "root ::= " + " | ".join(_literal(value) for value in kinds[0]["enum"]) + "\n"
    raise ValueError(f"no grammar for {schema}")


def _literal(text: str) -> str:
    plain = (c if c.isascii() and c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(plain)}"'
