"""Other names for fields, and left out None: what serializers of typed values share.

msgspec renames the fields of a `Struct` by its class (`rename="camel"`). `FieldNames` does the same for all typed
values, where a producer or consumer asks for it, and knows msgspec's words for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from leveret.errors import ConfigurationError, EncodeFailed
from leveret.settings.rules import NAME_STYLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Reader = Callable[[Any], Any]

__all__ = ["FieldNames", "renamed"]

#: Values without fields. Others are plain containers, or msgspec makes plain values of them.
_LEAVES: Final = frozenset({str, int, float, bool, type(None), bytes, msgspec.Raw})
_CONTAINERS: Final = (dict, list, tuple)
#: How many names are remembered.
_KEPT: Final = 4096


@lru_cache(_KEPT)
def renamed(name: str, rename: str) -> str:
    """Returns a name as msgspec's `rename` makes it.

    Args:
        name: The name, in words with `_` between them.
        rename: "camel" (`orderId`), "pascal" (`OrderId`) or "kebab" (`order-id`).

    Returns:
        The new name. Underscores at the beginning stay, except in kebab case; a name of underscores alone stays.

    Raises:
        ConfigurationError: There is no such style.

    Example:
        >>> renamed("order_id", "camel")
        'orderId'
    """
    if rename not in NAME_STYLES:
        raise ConfigurationError(
            f"rename is {rename!r}; it must be {' or '.join(map(repr, NAME_STYLES))}", option="rename"
        )
    words = [word for word in name.split("_") if word]
    if not words:
        return name
    if rename == "kebab":
        return name.strip("_").replace("_", "-")
    lead = name[: len(name) - len(name.lstrip("_"))]
    if rename == "camel":
        return lead + words[0] + "".join(word.title() for word in words[1:])
    return lead + "".join(word.title() for word in words)


class FieldNames:
    """Renames the fields of values, and leaves out fields that are None, on the way out and back.

    Fields are those of Struct, dataclass, attrs and TypedDict types, and the keys of plain dicts that are Python
    identifiers. A name that a Struct has chosen itself (`rename=`, `field(name=...)`) stays. A dict in a field of a
    typed value is data: its keys stay, and so does None in it. Structs that are arrays (`array_like`) have no names;
    they stay with all that is in them.

    Args:
        rename: See `renamed`; None keeps the names.
        omit_none: True leaves out fields that are None.
        builtin_types: The types beside JSON's that the format can write, as msgspec's `to_builtins` takes them.

    Raises:
        ConfigurationError: There is no such style.
    """

    def __init__(
        self, rename: str | None = None, *, omit_none: bool = False, builtin_types: Iterable[type] = ()
    ) -> None:
        self._rename = rename
        self._omit_none = omit_none
        self._builtin_types = tuple(builtin_types)
        self._leaves = _LEAVES.union(self._builtin_types)
        # By class: the attribute and the new name of each of its fields, and whether it may be left out, by the name
        # that msgspec gives it.
        self._fields: dict[type, dict[str, tuple[str, str, bool]]] = {}
        if rename is not None:
            renamed("a", rename)

    def _renamed(self, name: str) -> str:
        return name if self._rename is None else renamed(name, self._rename)

    # ------------------------------------------------------------------ out

    def plain(self, value: Any) -> Any:
        """Makes plain values, which have the new names, of a value.

        Args:
            value: The value; it stays as it is.

        Returns:
            Lists, dicts and what the format can write.

        Raises:
            EncodeFailed: Two fields of a type, or two keys of a dict, get the same name.
            TypeError: msgspec does not support a type in it; the text names the type.
        """
        if type(value) in self._leaves:
            return value
        if isinstance(value, dict):
            kept = [(key, each) for key, each in value.items() if not (each is None and self._omit_none)]
            found = {self._key(key): self.plain(each) for key, each in kept}
            if len(found) < len(kept):
                raise EncodeFailed(f"two keys of a dict get the same name by rename={self._rename!r}")
            return found
        if type(value) in (list, tuple):
            return [self.plain(each) for each in value]
        converted = msgspec.to_builtins(value, builtin_types=self._builtin_types, str_keys=True)
        return self._named(value, converted) if type(converted) in _CONTAINERS else converted

    def _key(self, key: Any) -> Any:
        return self._renamed(key) if type(key) is str and key.isidentifier() else key

    def _named(self, value: Any, converted: Any) -> Any:
        """Renames in what msgspec has made of a typed value; both have the same shape."""
        if type(converted) is not dict:
            # An array_like Struct is no collection.
            if not isinstance(value, list | tuple | set | frozenset):
                return converted
            return [self._child(*pair) for pair in zip(value, converted, strict=True)]
        if isinstance(value, dict):
            # Keys of different types may be the same text; then there is nothing to go by.
            if len(value) != len(converted):
                return converted
            pairs = zip(value.values(), converted.items(), strict=True)
            return {key: self._child(each, child) for each, (key, child) in pairs}
        fields = self._fields_of(type(value))
        found = {}
        for key, child in converted.items():
            # A tag of msgspec's is no field.
            attribute, name, omits = fields.get(key) or (key, key, False)
            if child is None and omits:
                continue
            found[name] = self._child(getattr(value, attribute, child), child)
        return found

    def _child(self, value: Any, converted: Any) -> Any:
        return self._named(value, converted) if type(converted) in _CONTAINERS else converted

    def _fields_of(self, kind: type) -> dict[str, tuple[str, str, bool]]:
        found = self._fields.get(kind)
        if found is None:
            import msgspec.inspect

            node: Any = msgspec.inspect.type_info(kind)
            try:
                names = self._names_of(node)
            except ConfigurationError as error:
                raise EncodeFailed(str(error)) from None
            found = self._fields[kind] = {
                # Readers give a field without a value its default, so None is written where the default is another.
                field.encode_name: (field.name, names[field.name], self._omit_none and _is_none_without_value(field))
                for field in node.fields
            }
        return found

    def _names_of(self, node: Any) -> dict[str, str]:
        """Returns the new names of the fields of a type."""
        names = {
            field.name: self._renamed(field.name) if field.encode_name == field.name else field.encode_name
            for field in node.fields
        }
        if len(set(names.values())) < len(names):
            raise ConfigurationError(
                f"two fields of {node.cls.__name__} get the same name by rename={self._rename!r}", option="rename"
            )
        return names

    # ------------------------------------------------------------------ back

    def reader(self, model: Any) -> Reader | None:
        """Makes a function that gives the fields of decoded plain values the names that the model has.

        Both names of a field are read. With `omit_none`, a field that is missing, has no default and may be None is
        None.

        Args:
            model: The type of the values, which msgspec must support.

        Returns:
            The function; None when the model has no fields. It leaves alone what does not fit the model.

        Raises:
            ConfigurationError: Two fields of a type get the same name; `option` is "rename".
        """
        import msgspec.inspect

        return _Readers(self._names_of, omit_none=self._omit_none).of(msgspec.inspect.type_info(model))


class _ObjectReader:
    """Gives the fields of one type the names that the type has.

    Attributes:
        fields: The name and the reader of each field, by each name that it may come under.
        missing: The names of fields that are None when they do not come.
    """

    __slots__ = ("fields", "missing")

    def __init__(self) -> None:
        self.fields: dict[str, tuple[str, Reader | None]] = {}
        self.missing: list[str] = []

    def __call__(self, value: Any) -> Any:
        if type(value) is not dict:
            return value
        found = dict.fromkeys(self.missing)
        for key, each in value.items():
            name, reader = self.fields.get(key) or (key, None)
            found[name] = each if reader is None else reader(each)
        return found


class _Readers:
    """Makes the reader of each type in a model.

    Args:
        names_of: Returns the new names of a type's fields.
        omit_none: See `FieldNames.reader`.
    """

    def __init__(self, names_of: Callable[[Any], dict[str, str]], *, omit_none: bool) -> None:
        self._names_of = names_of
        self._omit_none = omit_none
        # The reader of each type with fields, by the identity of its description.
        self._of_objects: dict[int, _ObjectReader] = {}

    def of(self, node: Any) -> Reader | None:
        """Returns the reader for a type that msgspec has described, or None when it has no fields."""
        import msgspec.inspect as described

        if isinstance(node, described.UnionType):
            return self._of_union(node)
        if isinstance(node, described.TupleType):
            return _positional([self.of(item) for item in node.item_types])
        if isinstance(node, described.NamedTupleType):
            return _positional([self.of(field.type) for field in node.fields])
        if hasattr(node, "value_type"):
            return _each_value(self.of(node.value_type))
        if hasattr(node, "item_type"):
            return _each_item(self.of(node.item_type))
        return self._of_object(node) if _has_names(node) else None

    def _of_object(self, node: Any) -> Reader:
        reader = self._of_objects.get(id(node))
        if reader is None:
            # Kept before it is complete: one of its fields may have its type again.
            reader = self._of_objects[id(node)] = _ObjectReader()
            names = self._names_of(node)
            readers = [(field, self.of(field.type)) for field in node.fields]
            reader.fields = {field.encode_name: (field.encode_name, each) for field, each in readers}
            reader.fields |= {names[field.name]: (field.encode_name, each) for field, each in readers}
            reader.missing = [
                field.encode_name
                for field in node.fields
                if self._omit_none and field.required and getattr(field.type, "includes_none", False)
            ]
        return reader

    def _of_union(self, node: Any) -> Reader | None:
        import msgspec.inspect as described

        # msgspec allows one type of each shape: one array, and one object unless all objects are tagged.
        objects = [each for each in node.types if _has_names(each)]
        others = [self.of(each) for each in node.types if not _has_names(each)]
        readers = [reader for reader in others if reader is not None]
        if len(objects) == 1:
            readers.append(self._of_object(objects[0]))
        elif objects:
            tagged = {each.tag: self._of_object(each) for each in objects if isinstance(each, described.StructType)}
            readers.append(_by_tag(objects[0].tag_field, tagged))
        if not readers:
            return None

        def read(value: Any) -> Any:
            for reader in readers:
                value = reader(value)
            return value

        return read


def _has_names(node: Any) -> bool:
    """Returns whether a described type is an object with names for its fields."""
    import msgspec.inspect as described

    is_object = isinstance(node, described.StructType | described.DataclassType | described.TypedDictType)
    return is_object and not getattr(node, "array_like", False)


def _is_none_without_value(field: Any) -> bool:
    """Returns whether a reader with `omit_none` gives a described field None when it has no value."""
    return field.required or field.default is None


def _by_tag(tag_field: str, readers: dict[Any, Reader]) -> Reader:
    def read(value: Any) -> Any:
        tag = value.get(tag_field) if type(value) is dict else None
        reader = readers.get(tag) if isinstance(tag, str | int) else None
        return value if reader is None else reader(value)

    return read


def _positional(readers: Sequence[Reader | None]) -> Reader | None:
    if not any(readers):
        return None

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(readers):
            return value
        return [each if reader is None else reader(each) for each, reader in zip(value, readers, strict=True)]

    return read


def _each_item(reader: Reader | None) -> Reader | None:
    if reader is None:
        return None
    return lambda value: [reader(each) for each in value] if type(value) is list else value


def _each_value(reader: Reader | None) -> Reader | None:
    if reader is None:
        return None
    return lambda value: {key: reader(each) for key, each in value.items()} if type(value) is dict else value
