"""Lists the commands: `python -m pipeline`."""

import ast
import re
from pathlib import Path

# A docstring's first sentence, and the command in it.
USAGE = re.compile(r"^(.*?)(?:: `python -m (pipeline[^`]*)`|[.:] |\.?$)")


def main() -> None:
    """Prints a line for each module that is a command."""
    for usage, does in commands().items():
        print(f"python -m {usage:24} {does}")
    print("\n`--help` says more of each; README.md says which you need.")


def commands() -> dict[str, str]:
    """The commands with their arguments, and what each does, from their docstrings."""
    folder = Path(__file__).parent
    found = {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if path.name != "__main__.py" and 'if __name__ == "__main__":' in text:
            sentence = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            does, usage = USAGE.match(sentence).groups()  # type: ignore[union-attr]
            found[usage or ".".join(path.relative_to(folder.parent).with_suffix("").parts)] = does
    return found


if __name__ == "__main__":
    main()
