"""Outputs of transformers whose `last_hidden_state` is computed when it is first read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndProjection

_LATE = "last_hidden_state"


class _Late:
    """Put before an output class until the field is read or set; then the object is one of the plain class again."""

    _compute: Callable[[], Tensor]

    def _settled(self, value: Tensor | None = None) -> Any:
        value = self._compute() if value is None else value
        self.__dict__.pop("_compute", None)
        self.__class__ = type(self).__mro__[2]
        setattr(self, _LATE, value)
        return self

    @property
    def last_hidden_state(self) -> Tensor:
        return self._settled().last_hidden_state

    @last_hidden_state.setter
    def last_hidden_state(self, value: Tensor) -> None:
        self._settled(value)

    def __getitem__(self, key: Any) -> Any:
        name = list(self)[key] if isinstance(key, int) else key  # type: ignore[call-overload]
        if isinstance(name, str) and name != _LATE:
            return OrderedDict.__getitem__(self, name)  # type: ignore[index]
        return self._settled()[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self._settled().get(key, default)

    def values(self) -> Any:
        return self._settled().values()

    def items(self) -> Any:
        return self._settled().items()

    def to_tuple(self) -> tuple:
        return self._settled().to_tuple()

    def copy(self) -> Any:
        return self._settled().copy()

    def __reduce__(self) -> Any:
        return self._settled().__reduce__()


class _LateOutput(_Late, BaseModelOutputWithPooling):
    pass


class _LateProjectedOutput(_Late, BaseModelOutputWithPoolingAndProjection):
    pass


_LATE_CLASS = {
    BaseModelOutputWithPooling: _LateOutput,
    BaseModelOutputWithPoolingAndProjection: _LateProjectedOutput,
}


def late(output: Any, compute: Callable[[], Tensor]) -> Any:
    """The same object, whose absent last_hidden_state `compute` will give."""
    del output.__dict__[_LATE]
    OrderedDict.__setitem__(output, _LATE, None)
    output.move_to_end(_LATE, last=False)
    output._compute = compute
    output.__class__ = _LATE_CLASS[type(output)]
    return output
