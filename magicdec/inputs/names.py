"""Resolve the names that users give to models, hardware profiles and drafts; `reference` and `cpu` always resolve."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.hardware.profile_file import load_profile
from magicdec.costmodel.models.catalog import UnknownModelError, is_builtin, resolve_model, unknown_model
from magicdec.costmodel.models.hf_config import UnknownFamilyError, load_config
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import COMPRESSED_DTYPES, DRAFT_KINDS, KV_POLICIES, DraftKind, KvPolicy
from magicdec.costmodel.speculation.acceptance import AcceptanceCurve, load_checkpoint_curves, published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft, prediction_head

from .checks import nearest, one_of, text
from .cpu_profile import CPU, BarMaker, cpu_profile_file, measure_cpu, write_profile
from .machines import find_machine

if TYPE_CHECKING:
    from magicdec.costmodel.models.draft_heads import DraftHead

REFERENCE = "reference"
DEFAULT_KV_BUDGET = 512


@dataclass(frozen=True)
class Model:
    """A model that a name resolves to.

    Attributes:
        config: Its configuration.
        folder: Its checkpoint directory; None if the name is not one.
        checkpoint: The path or id on the Hub that was given; None for the name of a built-in model.
    """

    config: TransformerConfig
    folder: Path | None
    checkpoint: str | None = None

    @property
    def curves(self) -> tuple[AcceptanceCurve, ...]:
        """Acceptance curves measured on it, then the published ones."""
        own = load_checkpoint_curves(self.folder) if self.folder else ()
        return (*(replace(curve, target=self.config.name) for curve in own), *published_curves())


def find_model(name: str, where: str = "model", *, drafts: bool = False) -> Model:
    """Resolve a model: the reference model, a built-in name, a path, or an id on the Hub.

    A path is that of a config.json, a GGUF file or a checkpoint directory; sizes then come from the weight files. An id
    (`owner/name`, or `hf:owner/name` for what is on the Hub in any case) that no built-in model has is looked up in the local
    cache of the Hub, then on the Hub.

    Args:
        name: What the user gave.
        where: The parameter, for error messages.
        drafts: Take drafts that are no models of their own, too.

    Raises:
        InputError: Nothing of that name, or a file that is no model configuration.
    """
    found = _found_model(text(where, name), where, drafts=drafts)
    return replace(found, checkpoint=name.removeprefix("hf:")) if "/" in name or os.path.exists(name) else found


def _found_model(name: str, where: str, *, drafts: bool) -> Model:
    if name == REFERENCE:
        folder = reference_model_dir()
        return Model(load_config(folder, name=REFERENCE), folder)
    if (head := find_head(name, where)) is not None:
        if not drafts:
            raise bad(where, "", "a model of its own; drafts go to `draft`", f"{name}, a draft of the kind {head.title}")
        return Model(head.config, None)
    directory = Path(name) if os.path.isdir(name) else None
    try:
        try:
            return Model(_named(name, where), directory)
        except UnknownModelError:
            found = _hub_folder(name, where)
            if found is None:
                raise
            return _of_hub(found, name)
    except UnknownFamilyError as error:
        from .counted import counted_model

        return Model(counted_model(error.raw, where=error.file, name=name, error=error), directory)


def find_head(name: str, where: str = "draft") -> DraftHead | None:
    """Resolve a draft that is no model of its own, by path or id; None if the name is anything else.

    Raises:
        InputError: It is such a draft, but its config is incomplete or a weight file is damaged; or the Hub has no such id.
    """
    path: Path | None = None
    if os.path.isdir(name) or (name.endswith(".json") and os.path.isfile(name)):
        path = Path(name)
    elif "/" in name or name.startswith("hf:"):
        path = None if not name.startswith("hf:") and is_builtin(name) else _hub_folder(name, where)
    if path is None:
        return None
    from magicdec.costmodel.models.draft_heads import load_head

    return load_head(path, name=name)


def _named(name: str, where: str) -> TransformerConfig:
    if name.startswith("hf:"):
        raise unknown_model(name, where)
    return resolve_model(name, where)


def _hub_folder(name: str, where: str) -> Path | None:
    from .hub import hub_folder, hub_id

    repo = hub_id(name)
    return hub_folder(repo, name, where) if repo is not None else None


def _of_hub(folder: Path, name: str) -> Model:
    from magicdec.costmodel.models.weight_files import with_index_total

    from .hub import has_weights

    if has_weights(folder):
        return Model(load_config(folder, name=name, weights=True), folder)
    return Model(with_index_total(load_config(folder, name=name), folder), None)


def find_hardware(
    name: str,
    *,
    remeasure: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    bar: BarMaker | None = None,
) -> HardwareProfile:
    """Resolve a machine: a shipped profile, a profile file, `cpu`, `local`, or several devices separated by commas.

    `cpu` is this machine's processor. It is measured on first use, and the profile is kept in the user's cache folder. `local`
    is what the drivers of this machine tell. Devices in a list share the layers of a model.

    Args:
        name: What the user gave.
        remeasure: Measure `cpu` again.
        progress: Receives a sentence before `cpu` is measured.
        bar: Shows progress while it is measured; None for a bar on a terminal.

    Warns:
        Note: The name leaves a choice; it says what was chosen.

    Raises:
        InputError: Nothing of that name, or a file that is no profile.
    """
    name = text("hardware", name)
    if name != CPU and (found := find_machine(name)) is not None:
        return found
    from magicdec.executor.system.cache_dir import is_private_file

    file = cpu_profile_file()
    if not remeasure and is_private_file(file):
        try:
            return load_profile(file)
        except InputError:
            progress(f"{file} is damaged")
    progress(f"measuring this machine's CPU, once; the profile is kept in {file}")
    write_profile(measure_cpu(find_model(REFERENCE).config, bar), file)
    return load_profile(file)


def find_draft(
    name: str,
    kv_policy: str | None,
    deployment: Deployment,
    kv_budget: object = None,
    *,
    kv_dtype: str | None = None,
    weight_dtype: str | None = None,
    tensor_parallel: int | None = None,
    where: str = "draft",
) -> Draft:
    """Resolve a draft: `none`, `self`, `ngram`, `eagle3`, `mtp`, the name of a smaller model, or a draft's checkpoint.

    A self draft reads by StreamingLLM unless another policy or a narrower type is given. A smaller model reads its whole KV
    cache unless a budget is given.

    Args:
        name: What the user gave.
        kv_policy: Which KV entries the draft reads; None for the usual policy.
        deployment: The target on its machine.
        kv_budget: Only whether there is one counts here.
        kv_dtype, weight_dtype: Narrower types that a self draft reads.
        tensor_parallel: GPUs that share a draft model; None for as many as suit it.
        where: The parameter that the name was given for, for error messages.

    Raises:
        InputError: A name is unknown, or the values do not fit the kind of draft.
    """
    name = text(where, name)
    kind: DraftKind = "model"
    for known in DRAFT_KINDS:
        kind = known if name == known else kind
    if kind == "model" and (meant := nearest(name, DRAFT_KINDS)):
        raise bad(where, "", f"{' or '.join(DRAFT_KINDS)}, or a model (did you mean {meant}?)", repr(name))
    if kind == "mtp" and not deployment.target.num_mtp:
        others = "eagle3, ngram or a smaller model"
        raise bad(where, "", f"{others}: {deployment.target.name} has no MTP layers", repr(name))
    head = find_head(name, where) if kind == "model" else None
    if head is not None:
        head.check(deployment.target, where)
        kind = "mtp" if head.kind == "mtp" else "eagle3"
    compressed = kv_dtype is not None or weight_dtype is not None
    sparse = kv_budget is not None or (kind == "self" and not compressed)
    usual: KvPolicy = "streaming_llm" if sparse and kind in ("self", "model") else "full"
    policy = one_of("kv_policy", kv_policy, KV_POLICIES) or usual
    if kind not in ("self", "model") and policy != "full":
        raise bad("kv_policy", "", f"none for `draft` {name}, which has no KV budget", repr(kv_policy))
    if kind == "self" and policy == "full" and not compressed:
        raise bad("kv_policy", "", "a sparse policy for a self draft; with the full cache it costs what the target does", "full")
    if compressed and kind != "self":
        given = "draft_kv_dtype" if kv_dtype is not None else "draft_weight_dtype"
        raise bad(given, "", "`draft` self beside it", name)
    if tensor_parallel is not None and kind != "model":
        raise bad("draft_tensor_parallel", "", "a draft model beside it", name)
    model = find_model(name, where).config if kind == "model" else None
    return Draft(
        kind,
        policy,
        executed(model, deployment.hardware, deployment.tensor_parallel) if model else None,
        tensor_parallel,
        one_of("draft_kv_dtype", kv_dtype, COMPRESSED_DTYPES),
        one_of("draft_weight_dtype", weight_dtype, COMPRESSED_DTYPES),
        head_network(head, deployment.hardware),
    )


def head_network(head: DraftHead | None, hardware: HardwareProfile) -> TransformerConfig | None:
    """The network of a prediction layer in the types that it executes in; None for none."""
    if head is None:
        return None
    return executed(prediction_head(head.config, "mtp") if head.kind == "mtp" else head.config, hardware)


def executed(config: TransformerConfig, hardware: HardwareProfile, tensor_parallel: int = 1) -> TransformerConfig:
    """The configuration with the types that it executes in on `hardware`, shared by `tensor_parallel` processes.

    A CPU keeps 16-bit matrices where its profile was measured with kernels that read them, which no sharded model uses.
    """
    if hardware.name != CPU:
        return config
    from magicdec.executor.model.dtypes import cpu_execution

    return cpu_execution(config, kernels=tensor_parallel == 1 and config.dtype in hardware.peak.flop_per_s)


def reference_model_dir() -> Path:
    """The checkpoint directory of the shipped model."""
    from magicdec.executor.reference_model import reference_model_dir

    return reference_model_dir()
