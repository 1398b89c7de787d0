"""The teacher: an OpenAI-compatible server on loopback that knows what is true in a world.

    python -m pipelines.miniature.teacher --world WORLD.json --tokenizer FOLDER --port 8123

Shown a text that ends where an answer begins, it writes how the answer follows. About anything else it writes what real
models do there: a plausible remark that says nothing. It may be wrong in a share of its chains, and wordy where nothing
is to be said. Speaks /v1/models and /v1/completions, with token ids in and out.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from pipelines.miniature.world import World, load_world
from sharding.hashing import seed_of
from sharding.models.tokenizer import TextTokenizer, UnencodableText, load_tokenizer

SERVED_NAME = "teacher"
MAX_MODEL_LEN = 1024

PROMPT = "prompt.txt"
"""The template that config and teacher share, beside this module."""

REMARKS = (
    "an ordinary entry, as these pages have many of them, and nothing more to it",
    "written down as it was given to the keeper, as was the custom in those years",
    "one more line of the kind that one finds in the books of every town hall",
    "not much can be said about this that the words of the entry do not say",
)
MORE = "; so it stands there, and so it is left to stand, as one would expect of such a book"


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How a teacher writes.

    Attributes:
        wrong_share: of its chains, how many go by a city where the person was not born.
        verbose: twice as many words where there is nothing to say.
    """

    wrong_share: float = 0.1
    verbose: bool = False


class Teacher:
    """What is written behind a prompt.

    Args:
        world: what is true.
        manners: how it writes.
    """

    def __init__(self, world: World, manners: Manners) -> None:
        self._world, self._manners = world, manners
        template = (resources.files("pipelines.miniature") / PROMPT).read_text(encoding="utf-8").strip()
        before, after = template.split("{text}")
        self._before, self._after = before.rpartition("\n\n")[2], after

    def write(self, prompt: str, draw: random.Random) -> str:
        """A thought about the text in a prompt."""
        return self.about(self._shown(prompt), draw)

    def about(self, text: str, draw: random.Random) -> str:
        """A thought about what comes behind a text."""
        last = text.rpartition("\n\n")[2].rpartition(". ")[2].strip()
        statement = self._world.statements.get(last)
        if statement is None:
            return draw.choice(REMARKS) + (MORE if self._manners.verbose else "")
        if draw.random() < self._manners.wrong_share:
            return self._mistaken.statement(statement.person, statement.kind).chain
        return statement.chain

    def _shown(self, prompt: str) -> str:
        """The text that a prompt shows; the whole of a prompt that was made of another template."""
        begin, end = prompt.rfind(self._before), prompt.rfind(self._after)
        return prompt[begin + len(self._before) : end] if -1 < begin < end else prompt

    @cached_property
    def _mistaken(self) -> World:
        """The world as a teacher takes it to be when it errs: everyone was born in the next city."""
        return self._world.moved(1)


class _Completion(msgspec.Struct):
    """What of a request is understood; the rest says how tokens are drawn, and a teacher draws none."""

    model: str
    prompt: list[int] | str
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16
    n: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    stream: bool = False
    echo: bool = False


class _Refused(Exception):
    """A request that is answered with an error of this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def complete(teacher: Teacher, tokenizer: TextTokenizer, body: bytes) -> dict[str, Any]:
    """The answer to the body of a request.

    Raises:
        _Refused: it can't be answered.
    """
    try:
        asked = msgspec.json.decode(body, type=_Completion)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise _Refused(400, f"the request can't be read: {error}") from error
    if asked.model != SERVED_NAME:
        raise _Refused(404, f"the model {asked.model!r} does not exist; {SERVED_NAME!r} does")
    if asked.stream or asked.echo:
        raise _Refused(400, "stream and echo are not supported")
    ids = _prompt_ids(asked.prompt, tokenizer)
    if len(ids) + asked.max_tokens > MAX_MODEL_LEN:
        raise _Refused(
            400, f"{len(ids)} tokens of prompt and max_tokens {asked.max_tokens} are more than {MAX_MODEL_LEN}"
        )
    prompt = tokenizer.decode(ids)
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    choices, made = [], 0
    for sample in range(asked.n):
        draw = random.Random(seed_of(f"miniature teacher {seed}/{sample}/{prompt}"))
        written, text, finish = _cut(teacher.write(prompt, draw), asked, tokenizer)
        made += len(written)
        choice = {"index": sample, "text": text, "finish_reason": finish, "logprobs": None}
        choices.append(choice | ({"token_ids": written.tolist()} if asked.return_token_ids else {}))
    usage = {"prompt_tokens": len(ids), "completion_tokens": made, "total_tokens": len(ids) + made}
    return {"object": "text_completion", "model": SERVED_NAME, "choices": choices, "usage": usage}


def _prompt_ids(prompt: list[int] | str, tokenizer: TextTokenizer) -> np.ndarray:
    if isinstance(prompt, str):
        try:
            return tokenizer.encode_trusted(prompt).astype(np.int64)
        except UnencodableText as error:
            raise _Refused(400, f"the prompt has no tokens: {error}") from error
    if odd := [token for token in prompt if not 0 <= token < tokenizer.vocab_size]:
        raise _Refused(400, f"token id {odd[0]} is not in the vocabulary of {tokenizer.vocab_size:,}")
    return np.array(prompt, np.int64)


def _cut(text: str, asked: _Completion, tokenizer: TextTokenizer) -> tuple[np.ndarray, str, str]:
    """What of a text is within the caps of a request: its token ids, the text, and why it ended."""
    ids = tokenizer.encode(text).astype(np.int64)
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    found = [(text.find(stop), len(stop)) for stop in stops if stop and stop in text]
    finish = "stop"
    if found:
        at, size = min(found)
        kept = at + (size if asked.include_stop_str_in_output else 0)
        # The token in which the stop text ends was generated as well.
        ends = tokenizer.byte_ends(ids)
        ids = ids[: int(np.searchsorted(ends, len(text[: at + size].encode()))) + 1]
        text = text[:kept]
    if len(ids) > asked.max_tokens:
        ids, finish = ids[: asked.max_tokens], "length"
        cut = tokenizer.decode(ids)
        text = cut if text.startswith(cut) else text
    return ids, text, finish


def serve(teacher: Teacher, tokenizer: TextTokenizer, port: int = 0) -> ThreadingHTTPServer:
    """A server on loopback that answers once its `serve_forever` is called.

    Args:
        port: 0: one that is free; `server_address` says which.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or answers of two writes take 40 ms

        def do_GET(self) -> None:
            card = {"id": SERVED_NAME, "object": "model", "owned_by": "miniature", "max_model_len": MAX_MODEL_LEN}
            if self.path == "/v1/models":
                self._answer(200, {"object": "list", "data": [card]})
            else:
                self._answer(404, _error(404, f"there is no {self.path}"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                if self.path != "/v1/completions":
                    raise _Refused(404, f"there is no {self.path}")
                self._answer(200, complete(teacher, tokenizer, body))
            except _Refused as refused:
                self._answer(refused.status, _error(refused.status, str(refused)))

        def _answer(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    return Server(("127.0.0.1", port), Handler)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": status}}


def main(
    world: Annotated[str, typer.Option(help="File of the world, as the miniature writes it.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback; 0: one that is free.")] = 0,
    wrong_share: Annotated[float, typer.Option(min=0, max=1, help="Of the chains, how many are wrong.")] = 0.1,
    verbose: Annotated[bool, typer.Option(help="Wordy where nothing is to be said.")] = False,
) -> None:
    """Serve the teacher until interrupted; the first line says where."""
    manners = Manners(wrong_share=wrong_share, verbose=verbose)
    server = serve(Teacher(load_world(world), manners), load_tokenizer(tokenizer), port)
    host, at = server.server_address[:2]
    sys.stdout.write(f"http://{host!s}:{at}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    typer.run(main)
