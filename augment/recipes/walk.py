"""One run of a recipe, walked from answer to answer: no event loop, no thread, nothing but the recipe's own steps.

Whoever walks it hands in what the calls made, from the ledger or from an engine, in any order; the walk says which
calls are wanted next. The same answers lead the same way, so a run that was killed is walked again from the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from augment.recipes import load_recipe
from augment.recipes.protocol import Call, Generate, Made, NothingLeft, Recipe, RecipeRequest, SegmentView
from sharding.errors import MillError, RequestError


@dataclass(frozen=True)
class End:
    """What a run came to.

    Attributes:
        text: the thought.
        made: the generation that is the thought; None where the recipe wrote it from several.
    """

    text: str
    made: Made | None


class Walk:
    """A run of a recipe; `begin` it once, then `answer` each call that it wants.

    Args:
        request: what the tier asks of the recipe.
        segment: what it is about.
        recipe: None: the one that the request names.

    Raises:
        RequestError: the recipe can't be loaded.
    """

    def __init__(self, request: RecipeRequest, segment: SegmentView, recipe: Recipe | None = None) -> None:
        self._name = request.name
        self.generate = Generate(request)
        self._coroutine = (recipe or load_recipe(request.name))(segment, self.generate)
        self._wanted: tuple[Call, ...] = ()
        self._made: dict[Call, Made] = {}

    def begin(self) -> tuple[Call, ...] | End:
        """The first calls that are wanted, or the end.

        Raises:
            NothingLeft: the tier's cap is spent, and the recipe can't do without more.
            RequestError: the recipe's code is wrong; says how.
        """
        return self._go(None)

    def answer(self, call: Call, made: Made) -> tuple[Call, ...] | End:
        """What is wanted next; nothing while others that were asked for with this call have no answer yet.

        Raises:
            NothingLeft, RequestError: as `begin`.
        """
        self._made[call] = made
        self.generate.answered(call, made)
        if any(one not in self._made for one in self._wanted):
            return ()
        return self._go(tuple(self._made[one] for one in self._wanted))

    def close(self) -> None:
        """Leave it where it is."""
        self._coroutine.close()

    def _go(self, answers: tuple[Made, ...] | None) -> tuple[Call, ...] | End:
        try:
            wanted = self._coroutine.send(answers)
            while self._is_answered(wanted):  # awaited a second time
                wanted = self._coroutine.send(tuple(self._made[one] for one in wanted))
        except StopIteration as end:
            return self._end(end.value)
        except (NothingLeft, RequestError):
            raise
        except MillError as error:
            raise RequestError(f"recipe {self._name}: {error}") from error
        except Exception as error:
            raise RequestError(f"recipe {self._name} raised {error!r}: correct its code") from error
        if not isinstance(wanted, tuple) or not all(isinstance(one, Call) for one in wanted):
            self.close()
            raise RequestError(
                f"recipe {self._name} awaits {wanted!r}: await only what `generate` and `generate.several` give"
            )
        self._wanted = wanted
        return tuple(dict.fromkeys(one for one in wanted if one not in self._made))

    def _is_answered(self, wanted: object) -> bool:
        return isinstance(wanted, tuple) and bool(wanted) and all(one in self._made for one in wanted)

    def _end(self, value: object) -> End:
        if isinstance(value, Made):
            return End(value.text, value)
        if isinstance(value, str):
            return End(value, None)
        raise RequestError(f"recipe {self._name} returned {value!r}: a thought is what a call made, or a text")
