"""Servers of a model as an engine: completions from one or several OpenAI-compatible URLs (vLLM, SGLang, a router).

Sends prompt token ids, so that what was asked is what the prompt says, and every sampling parameter, so that no default
of a server's own changes the text. Which server gets a request, and what happens when one fails, is the business of
`sharding.models.server_pool`. Written against vLLM 0.32; the fields that SGLang names otherwise are sent in both ways.
"""

from __future__ import annotations

import logging
from typing import Any

from augment.engines.answers import Answer, AnswerReader
from augment.engines.completions import Completion, paid_tokens_of, sum_of, text_of
from augment.engines.config import ModelConfig
from augment.engines.protocol import EngineDead, Generation, GenerationFailed, GenerationRequest, RequestRejected
from augment.engines.vllm_settings import LOOP_COUNT, LOOP_MAX_TOKENS, LOOP_MIN_TOKENS
from sharding.errors import MillError, RequestError
from sharding.models.bodies import shown
from sharding.models.first_look import look_at
from sharding.models.served import Served
from sharding.models.server import EndpointFailed, EndpointFull, EndpointRefused
from sharding.models.server_pool import COMPLETIONS, EndpointPool
from sharding.models.tokenizer import TextTokenizer, load_tokenizer

logger = logging.getLogger(__name__)

IN_FLIGHT_PER_URL = 64

MAX_STOP_TEXTS = 4
"""Of one request: OpenAI's limit, and vLLM's unless VLLM_MAX_STOP_STRINGS says otherwise where it runs."""

PROCESSED_LOGPROBS = "processed_logprobs"
"""vLLM's `--logprobs-mode` whose log probabilities are those of the distribution that was sampled from."""

_MOST_BYTES, _MOST_BYTES_PER_TOKEN = 1 << 20, 1 << 10
"""Of an answer: a token's text, id, log probability and place, in JSON, take some 100."""

_NAME_CHARACTERS, _SHOWN_OTHERS = 200, 8
"""Of names that servers give; of models that answered in place of the one that was asked."""


_NOT_SENT = ("tokenizer", "trust_remote_code", "logprobs_mode")
"""Engine arguments for this side of the wire."""

_ASKED_ELSEWHERE = frozenset(
    {"model", "prompt", "max_tokens", "min_tokens", "temperature", "top_p", "seed", "stop"}
    | {"n", "echo", "stream", "logprobs", "prompt_logprobs", "return_token_ids"}
)
"""What the request, its key and the reading of the answer depend on."""

_NEVER_LEFT_OUT = ("model", "prompt", "max_tokens", "temperature", "top_p")
"""Without these, an answer is not of what the config and the ledger say was asked; the others may be null."""


class EndpointEngine:
    """Completions of the model's `urls`.

    `engine_args` are sent with each request, on top of what is sent anyway; null leaves a field out, for a server that
    doesn't know it, and decides the text like any other value. `tokenizer` and `trust_remote_code` are about the prompt
    and stay here. So does `logprobs_mode`: what a server's log probabilities are of, it doesn't say, so
    `Generation.sum_logprobs` is None unless the sampling leaves the distribution as it is, or this says that the server
    runs with "processed_logprobs".

    Raises:
        RequestError: `engine_args` has a key that another field of the config sets.
    """

    family = "endpoint"
    memory_share = 0.0

    def __init__(self, model: ModelConfig) -> None:
        for name, value in model.engine_args.items():
            if name in _ASKED_ELSEWHERE and (value is not None or name in _NEVER_LEFT_OUT):
                may_be = "" if name in _NEVER_LEFT_OUT else "; it can only be null, which leaves it out"
                raise RequestError(f"engine_args.{name} of {model.name}: is set by the config's other sections{may_be}")
        self._model = model
        self._served_name = model.served_name or model.name
        self._tokenizer: TextTokenizer | None = None
        self._reader: AnswerReader | None = None
        self._others: set[str] = set()
        self._pool: EndpointPool | None = None

    def __repr__(self) -> str:
        return f"EndpointEngine({self._model.name!r}, urls={self._model.urls!r})"

    @property
    def version(self) -> str:
        return self._pool.software if self._pool is not None else ""

    @property
    def capacity(self) -> int:
        return IN_FLIGHT_PER_URL * len(self._model.urls)

    def look(self) -> list[MillError]:
        """What keeps this process from asking the servers for good, as far as it can be told before they are needed."""
        model = self._model
        return look_at(model.urls, model=self._served_name, api_key_env=model.api_key_env, check=self._check_room)

    async def start(self) -> None:
        model = self._model
        self._tokenizer = load_tokenizer(str(model.engine_args.get("tokenizer", model.name)), model.revision)
        self._reader = AnswerReader(self._tokenizer)
        self._pool = EndpointPool(
            model.urls,
            model=self._served_name,
            api_key_env=model.api_key_env,
            timeout_s=model.timeout_s,
            max_wait_s=model.max_wait_s,
            check=self._check_room,
        )
        await self._pool.start()

    async def generate(self, request: GenerationRequest) -> Generation:
        if self._pool is None or self._tokenizer is None or self._reader is None:
            raise EngineDead(f"the endpoints of {self._model.name} are closed")
        if len(request.prompt_token_ids) + request.max_tokens > self._model.max_model_len:
            raise RequestRejected(
                f"a prompt of {len(request.prompt_token_ids)} tokens and max_tokens {request.max_tokens} do not fit "
                f"max_model_len {self._model.max_model_len} of {self._model.name}"
            )
        with_logprobs = self._logprobs_are_of_the_sampled(request)
        most_tokens = len(request.prompt_token_ids) + request.max_tokens
        try:
            body = self._body(request, self._tokenizer, with_logprobs)
            completion, served = await self._pool.post(
                *(COMPLETIONS, body, Completion),
                max_bytes=_MOST_BYTES + _MOST_BYTES_PER_TOKEN * most_tokens,
                group=request.prefix_group,
            )
        except EndpointFull as error:
            raise GenerationFailed(str(error), retry_after_s=error.retry_after_s) from error
        except EndpointFailed as error:
            raise GenerationFailed(str(error)) from error
        except EndpointRefused as error:
            if error.unknown_fields:
                raise self._unknown_to_server(error) from error
            raise RequestRejected(str(error)) from error
        choice = completion.choices[0]
        text, thinking = text_of(choice)
        if text is None and choice.token_ids is None:
            raise GenerationFailed("the answer holds neither a text nor token ids")
        fingerprint = completion.system_fingerprint
        answer = Answer(
            text=text or "",
            thinking=thinking,
            token_ids=choice.token_ids,
            paid_tokens=paid_tokens_of(completion.usage, len(request.prompt_token_ids)),
            sum_logprobs=sum_of(choice.logprobs) if with_logprobs else None,
            finish_reason=choice.finish_reason,
            engine_version=served.software
            or (shown(fingerprint, None)[:_NAME_CHARACTERS] if isinstance(fingerprint, str) else "unknown"),
            model=self._other_model(completion.model),
        )
        return self._reader.read(request, answer)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _body(self, request: GenerationRequest, tokenizer: TextTokenizer, with_logprobs: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._served_name,
            "prompt": request.prompt_token_ids.tolist(),
            "max_tokens": request.max_tokens,
            "min_tokens": request.min_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            # Servers take the defaults of what isn't said from the model's generation_config.json.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_token_ids": True,
        }
        if self._reader is not None and self._reader.special_marks:
            body["skip_special_tokens"] = False
        if request.stop:
            body["stop"] = list(request.stop[:MAX_STOP_TEXTS])  # the others: see AnswerReader.read
            # Special tokens never show in the text, so as stop texts they would not be found.
            ids = (tokenizer.token_id(text) for text in request.stop)
            body["stop_token_ids"] = [i for i in ids if i in tokenizer.control_ids]
        if request.include_stop:
            body |= {"include_stop_str_in_output": True, "no_stop_trim": True}  # vLLM's name and SGLang's
        if request.repetition_detection:
            body["repetition_detection"] = {
                "min_pattern_size": LOOP_MIN_TOKENS,
                "max_pattern_size": LOOP_MAX_TOKENS,
                "min_count": LOOP_COUNT,
            }
        if with_logprobs:
            body["logprobs"] = 0  # of the sampled tokens only
        body |= {name: value for name, value in self._model.engine_args.items() if name not in _NOT_SENT}
        return {name: value for name, value in body.items() if value is not None}

    def _unknown_to_server(self, error: EndpointRefused) -> RequestError:
        """What to do about fields that a server doesn't know; it would refuse every request for them."""
        fields = [name for name in error.unknown_fields if name not in _NEVER_LEFT_OUT]
        if not fields:
            return RequestError(f"{error} (it can't be asked without {', '.join(error.unknown_fields)}: take another)")
        nulls = ", ".join(f"{name}: null" for name in fields)
        return RequestError(
            f"{error} (the model {self._model.name!r} is asked without {', '.join(fields)} where its section has "
            f"engine_args: {{{nulls}}})"
        )

    def _check_room(self, url: str, served: Served) -> None:
        if served.max_model_len is not None and served.max_model_len < self._model.max_model_len:
            raise RequestError(
                f"max_model_len {self._model.max_model_len} of {self._model.name}: {url} takes at most "
                f"{served.max_model_len} tokens of prompt and generation together"
            )

    def _logprobs_are_of_the_sampled(self, request: GenerationRequest) -> bool:
        plain = request.temperature == 1 and request.top_p == 1
        return plain or self._model.engine_args.get("logprobs_mode") == PROCESSED_LOGPROBS

    def _other_model(self, name: object) -> str | None:
        """The model that an answer names, if it isn't the one that was asked for; what is no name says nothing.

        Raises:
            RequestError: it is another one, and the config wants none.
        """
        if not isinstance(name, str) or not name or name == self._served_name:
            return None
        name = shown(name, None)[:_NAME_CHARACTERS]
        said = f"{self._model.name}: asked for {self._served_name!r}, {name!r} answered"
        if self._model.other_model == "error":
            raise RequestError(f"{said}; set served_name, or other_model: warn")
        if name not in self._others and len(self._others) < _SHOWN_OTHERS:
            self._others.add(name)
            logger.warning("%s; its rows name it", said)
        return name
