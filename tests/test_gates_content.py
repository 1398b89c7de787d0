"""Gates against refusals, prompt leakage and copies: what generators really say, and good traces that look like it."""

from __future__ import annotations

import inspect
import string
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.requests.prompts import load_template, template_names
from augment.selection.gates import GatesConfig
from augment.selection.gates.gate import Subject
from augment.selection.gates.leakage import Leakage
from augment.selection.gates.refusal import Refusal
from augment.selection.gates.verbatim import Verbatim
from augment.traces import Trace
from tests.test_gates import JAPANESE, REAL

SEGMENT = topics["lambda"]

THOUGHT = """\
So a lambda is an expression, and that is why it has no room for statements: where would the value of an assignment \
go? I can write f = lambda x: x + 1, but then def would have done the same and given the function a name that a \
traceback can show. Let me check the part about defaults. They are evaluated once, when the lambda is, not when it is \
called. That explains the loop where all three functions return 2: they share the variable, not its value at the time. \
Writing lambda i=i: i copies it, because the default is evaluated in each turn of the loop.
"""

REFUSALS = {
    "plain": "I'm sorry, but I can't help with that request. If there is anything else, I would be glad to try.",
    "curly apostrophes": "I’m sorry, but I can’t assist with generating this content. Please choose another topic.",
    "no apology": "I cannot assist with that request, as it asks for material that could cause harm to other people.",
    "bold": "**I'm sorry, but I can't continue with this.** The passage describes actions that I must not support.",
    "after a filler": "Okay, I am unable to help with creating this kind of content, since it may be dangerous to do.",
    "a model": "As an AI language model, I cannot form opinions on political matters such as those in the passage.",
    "at the end": "The passage is about the making of a poison.\n\nI'm sorry, but I cannot provide help with this.",
    "German": "Es tut mir leid, aber ich kann bei dieser Anfrage nicht helfen. Bitte wähle ein anderes Thema dafür.",
    "French": "Je suis désolé, mais je ne peux pas vous aider avec cette demande, car elle concerne un sujet sensible.",
    "Spanish": "Lo siento, pero no puedo ayudar con esta petición, porque trata de un asunto que podría ser dañino.",
    "Russian": "К сожалению, я не могу помочь с этим запросом, потому что он нарушает правила использования модели.",
    "Chinese": "抱歉，我无法协助处理这个请求，因为它可能涉及有害的内容。如果你有别的问题，我很乐意继续回答你。",
    "Japanese": "申し訳ありませんが、そのご依頼にはお応えできません。別の話題でしたら喜んでお手伝いいたします。",
    "Korean": "죄송하지만 그 요청은 도와드릴 수 없습니다. 다른 질문이 있으시면 언제든지 말씀해 주시기 바랍니다.",
}

NO_REFUSALS = {
    "quoted": "The reply “I'm sorry, but I can't help with that” shows the filter at work, and not the model: the same "
    "words come back whatever the question was, so they can't depend on it.",
    "quoted at the start": '"Sorry, but I cannot assist with that request." So ends the log, and the reader has to '
    "guess what was asked for; the last word suggests that it was not the first time.",
    "a quotation of two sentences": "“Thank you. I'm sorry, but I can't help with that.” The thanks are as fixed as "
    "the refusal is, so both come from a template, and the model was never asked.",
    "after a colon": "What the assistant in the log says is always the same: I'm sorry, but I can't help with that. "
    "A fixed string, then, and no sampling at all.",
    "an idiom": "I can't help but notice that the list is sorted twice here. The second sort is stable, so it keeps "
    "the "
    "order of the first among equals.",
    "a dead end": "I cannot do this by induction on n alone, since the step needs two earlier cases. Unfortunately, I "
    "can't see the second base case in the passage, so let me work it out.",
    "far into a long trace": THOUGHT * 2 + "I'm sorry, but I can't help with that.",
    "dialogue": "'I'm sorry, but I can't come tonight,' Anna says, and the reader knows that she could. The lie is "
    "told "
    "by the window: its light was on a page before.",
    "Japanese quotation": "「申し訳ありませんが、お応えできません。」という返事は、"
    "相手の依頼を断るときの決まった言い方である。"
    "理由を述べずに断るのが礼儀とされる場面もある。",
}

STORY = "“Come to the harbour tonight,” he wrote. I'm sorry, but I can't, she wrote back, and closed the window."

LEAKS = {
    # The first four are like what SmolLM2-135M-Instruct writes about pages of Python's documentation.
    "template": "The expert dwells on what is difficult, dense, and surprising: works out what is left unsaid, "
    "checks the "
    "steps, asks why it is so, and ties it to things known from elsewhere. The answer is in the text, but you can "
    "read it.",
    "template of another shape": "The subtlest point here, where even good students slip: say what it really means is "
    "what the passage is about, and what it is not. It is the passage's message that is most likely to be missed.",
    "template, in a loop": "This is the subtlest point here, where even good students slip:\n\nThis is the subtlest "
    "point here, where even good students slip:\n\nThis is the subtlest point here, where even good students slip:",
    "template, instructions too": "A good student is most likely to get the passage wrong. Don't retell the passage, "
    "don't greet and don't mention these instructions. Think aloud about the point, say what it means.",
    "the user wants": "Okay, so the user wants me to go through this passage on lambda expressions. Let me start "
    "with the "
    "grammar, since everything follows from a lambda being an expression.",
    "the user provided": "Alright. The user provided a passage from the Python documentation, so I will look at the "
    "grammar first and then at the scoping of default arguments.",
    "the prompt asks": "First, what does the prompt ask? The prompt asks me to dwell on hard parts, so I will take the "
    "default arguments, which are evaluated once.",
    "you are asking": "You are asking me to simulate an expert's in-depth thinking about lambda expressions, so let me "
    "begin with why no statements are allowed in them.",
    "I was asked": "I've been asked to explain lambda expressions as an expert would. The point that matters most "
    "is that "
    "a lambda evaluates to a function object.",
    "I need to write": "I need to write down the expert's thought process for this one. The hard part is the "
    "scoping of "
    "names, which are looked up when the function runs.",
    "a model": "As a large language model, I do not run code, but the result of this lambda is easy to see by hand: it "
    "adds one to whatever it is called with.",
    "chat": "Sure, here's a careful look at lambda expressions. They are expressions, so they can stand where a def "
    "can't, "
    "for example within a call. I hope this helps!",
    "markup": "<|im_start|>assistant\nA lambda is an expression whose value is a function object, so it can stand "
    "where a "
    "def statement can't.<|im_end|>",
    "a marker in the middle": THOUGHT + "</think>\n\nLambda expressions create anonymous functions.",
    "a turn": THOUGHT + "\nHuman: And what about generators?",
    "Chinese": "好的，用户要求我分析这段关于匿名函数的文字。首先要注意，匿名函数是一个表达式，所以它里面不能写语句。",
    "Japanese": "ユーザーは私に、この文章について考えることを求めている。"
    "まず、ラムダ式は式なので、文を書くことはできない。",
}

NO_LEAKS = {
    "users in a manual": "If the user wants to quit, the loop has to notice it; the user asks for a file, and the "
    "program "
    "provides its name. When the user needs help, the prompt says so: press h. The user provided path comes first.",
    "exercises": "We are asked to show that the sum converges. You want the terms to shrink fast enough, so I want to "
    "compare them with a geometric series, and I need to explain why the ratio is below one half.",
    "expert and student": "An expert would see at once that the invariant holds. A student might ask why, and the "
    "answer "
    "is that each step keeps the sum. I should think about the response time next.",
    "an AI in a sentence": "The passage says that an AI is trained on text. I am an optimist here: the more text, the "
    "better, as long as it isn't repeated.",
    "here is": "Here is the point: the default is evaluated once. Of course, here it makes no difference. Make "
    "sure, then, "
    "that it does nowhere else.",
}

COPIES = {
    "whole": SEGMENT,
    "the greater part": SEGMENT[: len(SEGMENT) * 2 // 3] + "\n\nSo a lambda is an expression.",
    "in another case": SEGMENT.upper().replace('"', "'"),
    "twice": SEGMENT[:400] + "\n\n" + SEGMENT[:400],
    "in another order": SEGMENT[500:] + "\n\n" + SEGMENT[:500],
}


def reasons(text: str, source: str = SEGMENT, prompt: str = "expert", config: GatesConfig | None = None) -> list[str]:
    trace = Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=100)
    subject = Subject(trace=trace, source_text=source, prompt=prompt)
    return [name for name, gate in (config or GatesConfig()).enabled().items() if gate.objects(subject)]


def test_a_thought_passes() -> None:
    assert all(reasons(THOUGHT, prompt=name) == [] for name in template_names())


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_found(name: str) -> None:
    assert "refusal" in reasons(REFUSALS[name])


@pytest.mark.parametrize("name", NO_REFUSALS)
def test_traces_about_refusals_pass(name: str) -> None:
    assert "refusal" not in reasons(NO_REFUSALS[name])


def test_words_of_the_segment_are_no_refusal() -> None:
    thought = "She had time. I'm sorry, but I can't, is all she says, and the window is what she says it with."
    assert "refusal" in reasons(thought)
    assert "refusal" not in reasons(thought, source=STORY)


def test_how_far_into_a_trace_a_refusal_may_begin() -> None:
    text = NO_REFUSALS["far into a long trace"]
    near = Refusal(within_characters=len(text))
    whole = Refusal(whole_characters=len(text))
    assert "refusal" in reasons(text, config=GatesConfig(refusal=near))
    assert "refusal" in reasons(text, config=GatesConfig(refusal=whole))
    plain = REFUSALS["at the end"]
    assert "refusal" not in reasons(
        plain, config=GatesConfig(refusal=Refusal(within_characters=20, whole_characters=0))
    )


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_found(name: str) -> None:
    prompt = "brief" if name.startswith(("template ", "template,")) else "expert"
    assert "leakage" in reasons(LEAKS[name], prompt=prompt)


@pytest.mark.parametrize("name", NO_LEAKS)
def test_traces_that_sound_like_leaks_pass(name: str) -> None:
    assert reasons(NO_LEAKS[name]) == []


@pytest.mark.parametrize(
    "mark",
    [
        *("<think>", "</think>", "<THINK>", "</ think >", "<thinking>", "</thought>", "<seed:think>", "</mm:think>"),
        *("<longcat_think>", "<reasoning>", "[THINK]", "◁think▷", "<|channel>", "<channel|>", "<|channel|>"),
    ],
)
def test_marks_of_thinking_are_leaks_in_any_spelling(mark: str) -> None:
    """One within a trace was written where no mark is read, or in a spelling that no dialect has."""
    assert reasons(THOUGHT) == [] and "leakage" in reasons(f"{THOUGHT}{mark}{THOUGHT}")
    assert "leakage" not in reasons(f"{THOUGHT}`{mark}`{THOUGHT}")


def test_what_the_segment_says_is_no_leak() -> None:
    for name in ("the user wants", "markup", "template"):
        assert "leakage" not in reasons(LEAKS[name], source="A log.\n" + LEAKS[name])
    about_chats = "A chat template puts <|im_start|> before every turn."
    assert "leakage" not in reasons(f"{THOUGHT}Then <|im_end|> has to end the turn.", source=about_chats)


def test_the_templates_own_words_are_a_leak_of_that_template_alone() -> None:
    for name in template_names():
        words = load_template(name).text.split("\n\n")[-1]
        assert "leakage" in reasons(words, prompt=name)
    assert "leakage" not in reasons(LEAKS["template"], prompt="rephrase")
    config = GatesConfig(leakage=Leakage(template_words=40))
    assert "leakage" not in reasons(LEAKS["template"], config=config)


def test_a_template_of_ones_own_in_japanese(tmp_path: Path) -> None:
    template = tmp_path / "mine.txt"
    template.write_text("{text}\n\n上の文章を読みながら、専門家の頭の中に浮かぶ考えを順番に書き出してください。")
    text = (
        "上の文章を読みながら、専門家の頭の中に浮かぶ考えを順番に書き出す。まず、沸騰とは圧力のつり合いの問題である。"
    )
    assert "leakage" in reasons(text, JAPANESE, str(template))
    assert "leakage" not in reasons(text[32:] * 2, JAPANESE, str(template))


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(name: str) -> None:
    assert "verbatim" in reasons(COPIES[name])


def test_japanese_copies_are_found() -> None:
    assert reasons(JAPANESE, source="前置き。" + JAPANESE) == ["verbatim"]


def test_quotations_pass() -> None:
    lines = [line for line in SEGMENT.splitlines() if line.strip()]
    quoting = f"> {lines[0]}\n> {lines[1]}\n\n{THOUGHT}\n> {lines[-1]}\n\nThat last part follows from it."
    assert reasons(quoting) == []
    japanese = f"「{JAPANESE.splitlines()[0]}」とあるが、では圧力が二倍になれば"
    japanese += "沸点はどこまで上がるのか。蒸気圧の曲線をたどると、"
    assert reasons(japanese + "百二十度あたりだとわかる。調理の時間が三分の一になるのはそのためだ。", JAPANESE) == []


def test_share_that_may_be_copied() -> None:
    half = SEGMENT[:300] + "\n" + THOUGHT
    assert "verbatim" not in reasons(half)
    assert "verbatim" in reasons(half, config=GatesConfig(verbatim=Verbatim(max_copied_share=0.1)))
    assert "verbatim" not in reasons(SEGMENT, config=GatesConfig(verbatim=Verbatim(max_copied_share=1.0)))


@pytest.mark.parametrize("name", REAL)
def test_real_text_is_no_copy_of_other_real_text(name: str) -> None:
    for source in (SEGMENT, inspect.getsource(string), JAPANESE):
        if source not in REAL[name]:
            assert reasons(REAL[name], source, "brief") in ([], ["language"], ["off_topic"])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (GatesConfig(refusal=Refusal(enabled=False)), REFUSALS["plain"]),
        (GatesConfig(leakage=Leakage(enabled=False)), LEAKS["the user wants"]),
        (GatesConfig(verbatim=Verbatim(enabled=False)), SEGMENT),
    ],
)
def test_each_gate_can_be_switched_off(config: GatesConfig, text: str) -> None:
    assert reasons(text) != []
    assert reasons(text, config=config) == []


@given(st.text(max_size=400), st.text(max_size=400), st.sampled_from(template_names()))
def test_no_text_is_too_strange_to_judge(text: str, source: str, prompt: str) -> None:
    assert reasons(text, source, prompt) == reasons(text, source, prompt)
