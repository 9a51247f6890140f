"""The cases of ``bench engine``: one module each, with a coroutine ``measure(setting) -> list of findings``."""
