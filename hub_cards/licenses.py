"""Licences: what parents ask of a model made from them, in the Hub's identifiers, and where a parent's is read.

This compares identifiers; it is no legal advice. A parent with terms of its own (Llama, Gemma), a non-commercial or a
share-alike licence binds the model that contains it or is made from it, so the licence stated must be the same, or
`other` with a `license_name`.
"""

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PERMISSIVE = set(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc unlicense zlib cc0-1.0 cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 afl-3.0 ms-pl ncsa postgresql pddl wtfpl bsl-1.0 "
    "artistic-2.0 ecl-2.0".split()
)
# Licences that a model made from their holder must carry on.
BINDING = {
    "llama2": "the Llama 2 Community License",
    "llama3": "the Llama 3 Community License: name the model 'Llama ...', show 'Built with Meta Llama 3'",
    "llama3.1": "the Llama 3.1 Community License: name the model 'Llama ...', show 'Built with Llama'",
    "llama3.2": "the Llama 3.2 Community License: name the model 'Llama ...', show 'Built with Llama'",
    "llama3.3": "the Llama 3.3 Community License: name the model 'Llama ...', show 'Built with Llama'",
    "llama4": "the Llama 4 Community License: name the model 'Llama ...', show 'Built with Llama'",
    "gemma": "the Gemma Terms of Use: pass the use restrictions on, and a NOTICE file",
    "apple-amlr": "Apple's research licence",
    "openrail": "OpenRAIL's use restrictions",
    "openrail++": "OpenRAIL++'s use restrictions",
    "bigscience-openrail-m": "BigScience OpenRAIL-M's use restrictions",
    "bigscience-bloom-rail-1.0": "BLOOM RAIL's use restrictions",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M's use restrictions",
    "bigcode-openrail-m": "BigCode OpenRAIL-M's use restrictions",
}
SHARE_ALIKE = set(
    "cc-by-sa-3.0 cc-by-sa-4.0 gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 "
    "eupl-1.2 osl-3.0 odbl cdla-sharing-1.0 gfdl".split()
)
NON_COMMERCIAL = set(
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 fair-noncommercial-research-license intel-research".split()
)
OTHER_LICENSE = "licence other, without its name and link"
OWN_TERMS = {"other", "unknown"}
KNOWN = PERMISSIVE | set(BINDING) | SHARE_ALIKE | NON_COMMERCIAL | OWN_TERMS
FAMILIES = {"gemma": "gemma", "gemma2": "gemma", "gemma3": "gemma", "gemma3_text": "gemma"}  # by model type


@dataclass
class Conflict:
    """Why a stated licence does not fit a parent's; `sure` is False where it must be looked at by a person."""

    finding: str
    remedy: str
    sure: bool = True


def is_permissive(license: str | None) -> bool:
    """Whether a licence asks nothing of the licence of a model made from its holder."""
    return license is None or license in PERMISSIVE


def conflicts(stated: str | None, license_name: str | None, parents: list[dict[str, Any]]) -> list[Conflict]:
    """
    Where the stated licence does not fit those of the parents.

    Args:
        stated: identifier in the card's metadata.
        license_name: its name where the identifier is `other`.
        parents: `{"role", "id", "license", "license_name"}` each.
    """
    found = []
    for parent in parents:
        name, license = parent["id"], parent.get("license")
        if license is None or license == "unknown":
            remedy = f"look where {name} is from, and note `license` of this parent by update_facts: docs/publish.md"
            found.append(Conflict(f"the licence of {name} ({parent['role']}) is unknown", remedy, sure=False))
        elif license == "other":
            terms = parent.get("license_name") or "terms of its own"
            if stated != "other":
                remedy = f"--license other --license_name {parent.get('license_name') or 'NAME'}, or read those terms"
                found.append(Conflict(f"{name} has {terms}, the card says {stated}", remedy, sure=False))
        elif license in PERMISSIVE or license == stated:
            continue
        elif stated == "other" and license_name:
            continue  # several binding licences can only be told in words
        elif license in BINDING:
            remedy = f"--license {license}; {BINDING[license]}"
            found.append(Conflict(f"{name} is under {license}, the card says {stated}", remedy))
        elif license in NON_COMMERCIAL and stated in NON_COMMERCIAL and not re.search("-sa-|-nd-", license):
            continue
        elif license in SHARE_ALIKE | NON_COMMERCIAL:
            kind = "non-commercial" if license in NON_COMMERCIAL else "share-alike"
            remedy = f"--license {license}, or --license other --license_name NAME for several such parents"
            found.append(Conflict(f"{name} is {kind} ({license}), the card says {stated}", remedy))
        else:
            remedy = f"compare {license} with {stated} by hand"
            found.append(Conflict(f"{name} is under {license}, which is not known here", remedy, sure=False))
    return found


def read_license(
    name: str | None,
    revision: str | None = None,
    model_type: str | None = None,
    kind: str = "model",
    local_only: bool = False,
) -> dict[str, str]:
    """
    What the card of a parent or data set says of its licence.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        model_type: whose family's terms are taken where there is no card.
        kind: `model` or `dataset`.
        local_only: look into folders and the cache only; the Hub is never asked with HF_HUB_OFFLINE.

    Returns:
        `dict`: `license` and `license_name`, as far as known.
    """
    from huggingface_hub import RepoCard, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found = {}
    if name:
        path = Path(name) / "README.md"
        try:
            if not Path(name).exists():
                hub = {"repo_type": kind, "revision": revision, "local_files_only": local_only}
                path = Path(hf_hub_download(name, "README.md", **hub))
            data = RepoCard.load(path, ignore_metadata_errors=True).data if path.is_file() else None
            values = {key: getattr(data, key, None) for key in ("license", "license_name")}
            found = {key: value for key, value in values.items() if isinstance(value, str)}
        except (OSError, HfHubHTTPError, HFValidationError, ValueError):
            pass  # no card to be had: its licence stays unknown, which the card and the check say
    if not found and model_type in FAMILIES:
        found = {"license": FAMILIES[model_type]}
    return found


def license_text(license: str | None) -> str | None:
    """The text of a licence that this package carries, its own; None for others."""
    if license != "apache-2.0":
        return None
    beside = Path(__file__).parent.parent / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    files = metadata.files("speechllm") or []
    return next((file.read_text(encoding="utf-8") for file in files if file.name == "LICENSE"), None)


__all__ = ["BINDING", "KNOWN", "Conflict", "conflicts", "is_permissive", "license_text", "read_license"]
