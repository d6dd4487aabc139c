"""The texts of the API description, read from docstrings."""

from __future__ import annotations

from whisper_api.server.openapi.struct_schemas import described, plain


def whole() -> None:
    """Do a thing with :class:`~whisper_api.schema.Word`, as ``this``.

    A paragraph
    on two lines.

    - ``one``: an item
      on two lines.
    - two

    Args:
        name: nothing that a reader of the API sees.

    Attributes:
        first, second: None, or what
            stands on two lines.
        third: ``x: y``.

    Raises:
        InvalidOption: not here.

    The end.
    """


def test_a_docstring_is_taken_apart() -> None:
    told = described(whole)
    assert told.summary == "Do a thing with `Word`, as `this`"
    assert told.text == "A paragraph on two lines.\n\n- `one`: an item on two lines.\n- two\n\nThe end."
    assert told.attributes == {
        "first": "null, or what stands on two lines.",
        "second": "null, or what stands on two lines.",
        "third": "`x: y`.",
    }
    assert told.whole.startswith("Do a thing with `Word`, as `this`.\n\nA paragraph")


def test_a_function_without_a_docstring_has_an_empty_description() -> None:
    def silent() -> None: ...

    told = described(silent)
    assert (told.summary, told.text, told.attributes, told.whole) == ("", "", {}, "")


def test_roles_become_names() -> None:
    assert plain(":func:`whisper_api.formats.render` and :data:`FORMATS`, ``a`b``") == "`render` and `FORMATS`, ``a`b``"
