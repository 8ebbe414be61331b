"""``python -m pixio_robot`` is ``pixio-robot``."""

from .cli import main

main()
