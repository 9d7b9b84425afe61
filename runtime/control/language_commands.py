"""The commands `ask` and `prompts`: language over MQTT, within the limits of the registry."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from tvau_edge.runtime.control.commands import Commands, Payload
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.explain import Explainer
from tvau_edge.runtime.language.messages import LONGEST_QUESTION
from tvau_edge.runtime.language.prompt_store import PromptStore

_MOST = 32


class Ask(Payload):
    """A question about a recent event."""

    event: UUID
    question: Annotated[str, Field(min_length=1, max_length=LONGEST_QUESTION)]


class Asked(BaseModel):
    """Its answer."""

    event: UUID
    question: str
    answer: str


class SetPrompts(Payload):
    """Other class prompts, or those before them, or what is in force."""

    action: Literal["set", "undo", "reset", "show"] = "set"
    abnormal: Annotated[tuple[str, ...], Field(max_length=_MOST, description="set: behaviours")] = ()
    normal: Annotated[
        list[str] | None, Field(max_length=_MOST, description="set: behaviours; none keeps those in force")
    ] = None


class PromptsNow(BaseModel):
    """The class prompts in force."""

    version: int
    normal: list[str]
    abnormal: list[str]
    cosine: float | None


def register(commands: Commands, explainer: Explainer | None, store: PromptStore) -> None:
    """Make the commands known.

    Args:
        commands: the registry.
        explainer: answers and reads prompts; None without a language model.
        store: of the site's class prompts.
    """

    def talking() -> Explainer:
        if explainer is None:
            raise LanguageModelError("this device has no language model at work (language.enabled)")
        return explainer

    def ask(payload: Ask) -> Asked:
        answer = talking().ask(payload.event, payload.question)
        return Asked(event=payload.event, question=payload.question, answer=answer)

    def prompts(payload: SetPrompts) -> PromptsNow:
        match payload.action:
            case "set":
                now = store.set(list(payload.abnormal), payload.normal, talking().read_prompts)
            case "undo":
                now = store.undo()
            case "reset":
                store.forget()
                now = store.current()
            case "show":
                now = store.current()
        return PromptsNow(
            version=now.version, normal=list(now.normal), abnormal=list(now.abnormal), cosine=now.cosine
        )

    commands.register("ask", Ask, ask)
    commands.register("prompts", SetPrompts, prompts)
