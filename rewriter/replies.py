"""What a model replies, piece by piece, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rewriter.backends.base import Chunk
from rewriter.checks import Fault, find_faults, length_miss, plain_paragraph, strip_thinking
from rewriter.locking import LockedPrompt, Preview, Refused, Unlocked, compose, unlock, without_placeholders
from rewriter.offline import compose_caption
from rewriter.results import Outcome, RewriteEvent, RewriteResult
from rewriter.thinking import ThinkingSplitter


@dataclass
class Reply:
    """One reply as it arrives."""

    locked: LockedPrompt
    opened: bool
    cut: bool = False
    length: int = 0

    def __post_init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._parts: list[str] = []
        self._reasoned = False
        self._splitter = ThinkingSplitter(self.opened)
        self._preview = Preview(self.locked)

    def take(self, chunk: Chunk) -> list[RewriteEvent]:
        """Keep a piece, and say what of it to show."""
        self.length += len(chunk.text)
        if chunk.kind == "restart":
            self._restart()
            return [RewriteEvent("retry", chunk.text)]
        if chunk.kind == "reasoning":
            self._reasoned = True
            self._splitter.inside = False
            return [RewriteEvent("thinking", chunk.text)]
        if chunk.kind == "end":
            self.cut = chunk.text == "length"
            pieces = [*self._splitter.finish()]
        else:
            self._parts.append(chunk.text)
            pieces = self._splitter.feed(chunk.text)
        events = [
            RewriteEvent("thinking", text) if thinking else RewriteEvent("text", self._preview.feed(text))
            for thinking, text in pieces
        ]
        if chunk.kind == "end":
            events.append(RewriteEvent("text", self._preview.finish()))
        return [event for event in events if event.text]

    @property
    def caption(self) -> str:
        """The reply without its thinking; empty where the thinking never ended."""
        text = "".join(self._parts)
        # A server that keeps thinking apart, or a model that does not think, sends no mark at all: then the end of the
        # reply tells whether this is a caption or thinking that ran out of tokens.
        return strip_thinking(text, opened=self.opened and not self._reasoned and self.cut)


@dataclass
class History:
    """The replies to one prompt so far, and what became of them."""

    locked: LockedPrompt
    backend: str
    attempts: int = 0
    settled: bool = False
    problem: str = ""
    hints: list[str] = field(default_factory=list)
    _usable: tuple[Unlocked, tuple[str, ...], tuple[str, ...]] | None = None
    _rank: tuple[int, int] = (0, 0)
    _description: str = ""

    def judge(self, reply: Reply) -> None:
        """Check a reply; `settled` says whether to stop asking."""
        self.attempts += 1
        text, trimmed = plain_paragraph(reply.caption)
        unlocked = unlock(self.locked, text)
        repairs = ("text around the caption removed",) if trimmed else ()
        if isinstance(unlocked, Refused):
            faults = self._check(without_placeholders(self.locked, text), reply.cut)
            hard = [fault for fault in faults if fault.hard]
            if not hard:
                self._description = text
            problem = "; ".join([*(fault.what for fault in hard), unlocked.reason] if text else ["empty"])
            self._reject(problem, [*(fault.hint for fault in hard), _placeholder_hint(self.locked, unlocked)])
            return
        description = " ".join(unlocked.gaps)
        faults = self._check(description, reply.cut)
        hard = [fault for fault in faults if fault.hard]
        self.problem = "; ".join(fault.what for fault in hard or faults)
        if hard:
            self._reject(self.problem, [fault.hint for fault in hard])
            return
        notes = tuple(fault.what for fault in faults)
        rank = (len(faults), length_miss(description, self.locked.description))
        if self._usable is None or rank <= self._rank:  # the second try may be the worse one
            self._usable, self._rank = (unlocked, (*repairs, *unlocked.repairs), notes), rank
        # A length, or headings, are worth one more reply, not two.
        self.settled = not faults or self.attempts > 1
        self.hints = [fault.hint for fault in faults]

    def result(self) -> RewriteResult:
        """The best caption that the replies allow."""
        prompt = self.locked.speech.source
        if self._usable is not None:
            unlocked, repairs, notes = self._usable
            outcome: Outcome = "retried" if self.attempts > 1 else "repaired" if repairs else "as is"
            return RewriteResult(prompt, unlocked.caption, self.backend, outcome, self.attempts, (*repairs, *notes))
        reason = f"no reply of {self.attempts} could be used ({self.problem})"
        if self._description:
            caption = compose(self.locked, self._description)
            notes = (f"{reason}: the speech stands in a sentence of its own",)
        else:
            caption, offline_notes = compose_caption(self.locked)
            notes = (reason, *offline_notes)
        return RewriteResult(prompt, caption, self.backend, "composed", self.attempts, notes)

    def _check(self, description: str, cut: bool) -> list[Fault]:
        faults = find_faults(description, self.locked.description)
        if cut:
            faults.append(Fault("the reply was cut off", "请更简短地思考，写完整个段落。", hard=True))
        return faults

    def _reject(self, problem: str, hints: list[str]) -> None:
        self.problem, self.hints = problem, hints
        self.settled = self._usable is not None  # only its length was wrong: good enough


def _placeholder_hint(locked: LockedPrompt, refused: Refused) -> str:
    names = [locked.placeholders[number - 1] for number in refused.missing] or list(locked.placeholders)
    lead = "缺少占位符" if refused.missing else "占位符必须各出现一次并保持顺序："
    return f"{lead}{'、'.join(names)}。"
