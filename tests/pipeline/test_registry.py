"""Where stages come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

import ucm_async
from ucm_async.errors import ConfigError, UnknownNameError
from ucm_async.pipeline import known_stages, register_stage, registry, resolve_stage
from ucm_async.stages.empty import EmptyStage
from ucm_async.stages.fake import FakeStage

PLUGIN = """
from ucm_async.stages.empty import EmptyStage

class {name}(EmptyStage):
    name = "Mine"
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it, and so are the plug-ins it imports."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    yield
    for name in [name for name in sys.modules if name.startswith("ucm_async_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def plugins(tmp_path: Path) -> tuple[str, ...]:
    return (str(tmp_path),)


class TestNames:
    def test_those_that_come_along(self) -> None:
        assert {"Posix", "Empty", "Fake"} <= set(known_stages())
        assert resolve_stage("Empty") is EmptyStage
        assert resolve_stage("Fake") is FakeStage

    def test_an_unknown_one_names_the_nearest(self) -> None:
        with pytest.raises(UnknownNameError, match=r"no stage 'posix'; did you mean 'Posix'\? \(known: "):
            resolve_stage("posix")

    def test_one_that_resembles_none_lists_all(self) -> None:
        with pytest.raises(UnknownNameError, match=r"no stage 'Zzzzzz' \(known: Cache, Compress, Empty, Fake, .*Posix"):
            resolve_stage("Zzzzzz")

    async def test_the_user_sees_it_when_the_store_is_opened(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'Empty'"):
            async with ucm_async.open_store("Emty", block_size=4096):
                pass


class TestRegister:
    @pytest.mark.parametrize(
        "stage", [FakeStage, "ucm_async.stages.fake:FakeStage", lambda: FakeStage], ids=["class", "text", "function"]
    )
    def test_a_class_its_name_or_a_function(self, stage: object) -> None:
        register_stage("Mine", stage)  # type: ignore[arg-type]
        assert resolve_stage("Mine") is FakeStage
        assert "Mine" in known_stages()

    def test_a_name_that_is_taken(self) -> None:
        with pytest.raises(ValueError, match="name: a stage 'Posix' is registered already; pass replace=True"):
            register_stage("Posix", FakeStage)
        register_stage("Posix", FakeStage, replace=True)
        assert resolve_stage("Posix") is FakeStage

    def test_nothing_is_imported_before_it_is_needed(self) -> None:
        register_stage("Mine", "no.such.module:Stage")
        assert "Mine" in known_stages()
        with pytest.raises(ConfigError, match=r"stage 'Mine': cannot import no\.such\.module:Stage: No module"):
            resolve_stage("Mine")

    @pytest.mark.parametrize("stage", [int, lambda: 7, "ucm_async.store:Store"])
    def test_what_is_no_stage(self, stage: object) -> None:
        register_stage("Mine", stage)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"stage 'Mine': .* is no ucm_async\.abc\.Stage"):
            resolve_stage("Mine")


class TestModuleAndClass:
    def test_without_any_registration(self) -> None:
        assert resolve_stage("ucm_async.stages.fake:FakeStage") is FakeStage

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no.such:Stage", "cannot import no.such:Stage"),
            ("ucm_async.stages.fake:Nothing", "has no attribute 'Nothing'"),
            ("ucm_async.stages.fake:OrderedDict", "is no ucm_async.abc.Stage"),
        ],
    )
    def test_what_cannot_be_had(self, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            resolve_stage(name)

    async def test_in_a_composition(self) -> None:
        async with ucm_async.open_store("ucm_async.stages.fake:FakeStage", block_size=4096) as store:
            ids = ucm_async.block_ids([1])
            assert (await store.dump(ids, None, [bytes(4096)])).ok.all()
            assert (await store.lookup(ids)).all()


class TestEntryPoints:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if a package were installed that brings stages."""
        group = registry.ENTRY_POINT_GROUP
        points = EntryPoints(
            [
                EntryPoint("Theirs", "ucm_async.stages.empty:EmptyStage", group),
                EntryPoint("Broken", "no.such:Stage", group),
                EntryPoint("Posix", "ucm_async.stages.empty:EmptyStage", group),
                EntryPoint("Other", "ucm_async.stages.empty:EmptyStage", "somebody.else"),
            ]
        )
        monkeypatch.setattr(registry, "entry_points", points.select)

    def test_are_found_by_name(self) -> None:
        assert resolve_stage("Theirs") is EmptyStage
        assert {"Theirs", "Broken"} <= set(known_stages())
        assert "Other" not in known_stages()

    def test_do_not_take_the_name_of_another(self) -> None:
        assert resolve_stage("Posix") is not EmptyStage

    def test_that_cannot_be_imported(self) -> None:
        with pytest.raises(ConfigError, match=r"stage 'Broken': cannot import no\.such:Stage"):
            resolve_stage("Broken")


class TestPluginDirectory:
    @pytest.mark.parametrize("class_name", ["Mine", "MineStage"])
    def test_a_file_of_the_stages_name(self, plugins: tuple[str, ...], class_name: str) -> None:
        Path(plugins[0], "Mine.py").write_text(PLUGIN.format(name=class_name))
        assert "Mine" in known_stages(plugins)
        assert resolve_stage("Mine", plugins).__name__ == class_name

    def test_it_is_not_imported_to_list_it(self, plugins: tuple[str, ...]) -> None:
        Path(plugins[0], "Mine.py").write_text("raise SystemError")
        assert "Mine" in known_stages(plugins)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("raise ValueError('no')", "Mine.py cannot be imported: no"),
            ("def (", "Mine.py cannot be imported: "),
            ("", "Mine.py has no class Mine or MineStage"),
            ("Mine = 7", "7 is no ucm_async.abc.Stage"),
        ],
    )
    def test_a_file_that_is_no_stage(self, plugins: tuple[str, ...], source: str, message: str) -> None:
        Path(plugins[0], "Mine.py").write_text(source)
        with pytest.raises(ConfigError, match=message):
            resolve_stage("Mine", plugins)

    async def test_in_a_composition(self, plugins: tuple[str, ...]) -> None:
        Path(plugins[0], "Mine.py").write_text(PLUGIN.format(name="Mine"))
        async with ucm_async.open_store("Mine", block_size=4096, plugin_dirs=plugins) as store:
            assert list(store.statistics().pipeline) == ["Mine"]
