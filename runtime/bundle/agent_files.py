"""Make an agent reference self-contained: its file, the prompt and the model profile become part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatfleet.runtime.bundle.expressions import Templates
from flatfleet.runtime.bundle.refs import locate, names_file
from flatfleet.runtime.bundle.shapes import mapping
from flatfleet.runtime.bundle.yamlmap import Document, Where, read, shown
from flatfleet.runtime.errors import BundleError, UsageError, did_you_mean

KINDS = ("offline", "flatagent")
_PROMPT_TEXTS = ("system", "user", "instruction_suffix", "post_history_instructions")


@dataclass(frozen=True)
class AgentFiles:
    """Embeds agents; `kind` ('offline', 'flatagent' or None) says which of two twin files is meant."""

    kind: str | None = None

    def embed(self, ref: Any, doc: Document, where: Where) -> Any:
        """Return the agent that stands at `where` of a machine's file as data that needs no file.

        Paths in an agent's file are relative to that file, or else (the SDK's rule) to the machine's.
        Raises BundleError with one finished line a problem.
        """
        folder = doc.path.parent
        if isinstance(ref, str):
            return self._content(self._read(ref, doc, where), folder)
        if not isinstance(ref, dict):
            return ref
        name = ref.get("ref")
        if isinstance(name, str) and (names_file(name) or (folder / name).is_file()):
            content = self._content(self._read(name, doc, (*where, "ref")), folder, typed=True)
            rest = {key: value for key, value in ref.items() if key != "ref"}
            return {**rest, "config": {**content, **mapping(ref.get("config"))}}
        return _resolved(ref, doc, where, [folder])

    def _read(self, ref: str, doc: Document, where: Where) -> Document:
        try:
            return read(locate(self._twin(ref, doc.path.parent), doc.path.parent))
        except BundleError:
            raise
        except UsageError as error:
            raise BundleError([f"{doc.at(where)}: {where[-1]}: {error}"]) from error

    def _twin(self, ref: str, folder: Path) -> str:
        if self.kind == "flatagent" and ref.endswith(".offline.yml"):
            twin = ref.removesuffix(".offline.yml") + ".flatagent.yml"
            try:
                locate(twin, folder)
            except UsageError as error:
                raise UsageError(f"no flatagent stands beside '{ref}': {error}") from error
            return twin
        if self.kind == "offline" and ref.endswith(".flatagent.yml"):
            twin = ref.removesuffix(".flatagent.yml") + ".offline.yml"
            try:
                locate(twin, folder)
            except UsageError:
                return ref
            return twin
        return ref

    def _content(self, doc: Document, machine_folder: Path, typed: bool = False) -> dict[str, Any]:
        if not isinstance(doc.data, dict):
            raise BundleError([f"{doc.at()}: an agent file is a mapping, with `spec: flatagent` or with `type:`"])
        if typed and doc.data.get("spec") != "flatagent":
            return doc.data
        return _resolved(doc.data, doc, (), [doc.path.parent, machine_folder])


def _resolved(agent: dict[str, Any], doc: Document, where: Where, folders: Sequence[Path]) -> dict[str, Any]:
    if "type" in agent:
        inner = agent.get("config")
        if isinstance(inner, dict) and inner.get("spec") == "flatagent":
            return {**agent, "config": _resolved(inner, doc, (*where, "config"), folders)}
        return agent
    if agent.get("spec") != "flatagent" or not isinstance(agent.get("data"), dict):
        if not where or agent.get("spec") == "flatagent":
            text = "an agent has `spec: flatagent` with `data`, or the `type` of its adapter with a `config`"
            raise BundleError([f"{doc.at(where)}: {text}, got {', '.join(agent) or 'nothing'}"])
        return agent
    data, at = dict(agent["data"]), (*where, "data")
    if "prompt" in data:
        data["prompt"] = _prompt(data["prompt"], doc, (*at, "prompt"), folders)
    if isinstance(data.get("profile"), str):
        data["profile"] = _profile(data["profile"], doc, (*at, "profile"), folders)
    model = data.get("model")
    name = model.get("profile") if isinstance(model, dict) else model
    if isinstance(name, str):
        chosen = _profile(name, doc, (*at, "model"), folders)["data"]["model_profiles"][name]
        own = {key: value for key, value in mapping(model).items() if key != "profile" and value is not None}
        data["model"] = {**chosen, **own}
    return {**agent, "data": data}


def _prompt(ref: Any, doc: Document, where: Where, folders: Sequence[Path]) -> Any:
    if isinstance(ref, str):
        doc = read(_first(ref, doc, where, folders))
        where, ref = (), doc.data
    if not isinstance(ref, dict):
        raise BundleError([f"{doc.at(where)}: a prompt is a path or a mapping with `user`"])
    wrapped = isinstance(ref.get("data"), dict)
    prompt = ref["data"] if wrapped else ref
    if wrapped:
        where = (*where, "data")
    templates, problems = Templates(), []
    for key in _PROMPT_TEXTS:
        text = prompt.get(key, "")
        problem = templates.problem(text) if isinstance(text, str) else f"`{key}` must be a text"
        if problem:
            problems.append(f"{doc.at((*where, key))}: {problem}")
    if not problems and "user" not in prompt:
        problems.append(f"{doc.at(where)}: a prompt needs `user` — got {', '.join(map(str, prompt)) or 'nothing'}")
    if problems:
        raise BundleError(problems)
    return prompt


def _first(ref: str, doc: Document, where: Where, folders: Sequence[Path]) -> Path:
    problem = ""
    for folder in folders:
        try:
            return locate(ref, folder)
        except UsageError as error:
            problem = problem or str(error)
    raise BundleError([f"{doc.at(where)}: {where[-1]}: {problem}"])


def _profile(name: str, doc: Document, where: Where, folders: Sequence[Path]) -> dict[str, Any]:
    """Return a catalog of one profile: the catalog's default, the named one over it, its override over all."""
    path = next((folder / "profiles.yml" for folder in folders if (folder / "profiles.yml").is_file()), None)
    if path is None:
        places = " or ".join(f"{shown(folder)}/" for folder in dict.fromkeys(folders))
        raise BundleError([f"{doc.at(where)}: profile '{name}' needs a profiles.yml in {places}, there is none"])
    catalog = read(path)
    data = mapping(mapping(catalog.data).get("data", catalog.data))
    profiles = mapping(data.get("model_profiles"))
    if mapping(catalog.data).get("spec", "flatprofile") != "flatprofile" or not profiles:
        raise BundleError([f"{catalog.at()}: profiles stand in `spec: flatprofile` under data.model_profiles"])
    merged: dict[str, Any] = {}
    sources: list[tuple[Any, Document, Where]] = [
        (data.get("default"), catalog, ("data", "default")),
        (name, doc, where),
        (data.get("override"), catalog, ("data", "override")),
    ]
    for each, source, place in sources:
        if each is None:
            continue
        if not isinstance(profiles.get(each), dict):
            hint = did_you_mean(str(each), profiles)
            raise BundleError([f"{source.at(place)}: unknown profile '{each}' in {catalog.name}{hint}"])
        merged.update(profiles[each])
    version = catalog.data.get("spec_version") or "4.2.1"
    inner = {"model_profiles": {name: merged}, "default": name}
    return {"spec": "flatprofile", "spec_version": version, "data": inner}
