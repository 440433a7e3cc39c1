"""The generated binding of Xen's user libraries; native/build_xen.py is its source."""

from typing import Any, Literal, overload

class Pointer:
    """An address that Python only passes on."""

class Numbers:
    """``uint32_t[]`` or ``unsigned int *``."""

    def __getitem__(self, index: int, /) -> int: ...

class Texts(Pointer):
    """``char **``."""

    def __getitem__(self, index: int, /) -> Pointer: ...

class Memory:
    """A cffi buffer."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __getitem__(self, where: slice, /) -> bytes: ...
    def __len__(self) -> int: ...

class _Ffi:
    NULL: Pointer
    errno: int

    @overload
    def new(self, cdecl: Literal["uint32_t[]"], init: int | list[int], /) -> Numbers: ...
    @overload
    def new(self, cdecl: Literal["unsigned int *"], /) -> Numbers: ...
    def buffer(self, cdata: Pointer, size: int, /) -> Memory: ...
    def string(self, cdata: Pointer, /) -> bytes: ...
    def dlopen(self, name: str | None, /) -> Any: ...

ffi: _Ffi
