"""A diagnosis as text for people."""

from __future__ import annotations

from collections.abc import Iterator

from samri_runtime.doctor._diagnosis import Diagnosis, ProviderState


def as_text(diagnosis: Diagnosis) -> str:
    """The diagnosis in sections, without its problems: the command says those on stderr."""
    sections = [_machine(diagnosis), _runtime(diagnosis), _providers(diagnosis), _extras(diagnosis), _asked(diagnosis)]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _machine(diagnosis: Diagnosis) -> Iterator[str]:
    found = diagnosis.machine
    yield f"samri {found['samri']}, Python {found['python']}, numpy {found['numpy']}"
    yield f"{found['system']}; {found['processor']}, {found['cores']} cores"
    nvidia = found["nvidia"]
    if nvidia["driver"]:
        yield f"NVIDIA driver for CUDA up to {nvidia['cuda']}; GPUs: {', '.join(nvidia['gpus']) or 'none'}"
    else:
        yield "no NVIDIA driver"


def _runtime(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.onnxruntime is None:
        yield "ONNX Runtime: can't be imported"
    else:
        yield f"ONNX Runtime {diagnosis.onnxruntime['version']} for {diagnosis.onnxruntime['device']}"
        yield f"  {diagnosis.onnxruntime['build']}"
    yield f"  wheels: {', '.join(map(str, diagnosis.wheels)) or 'none'}"
    if diagnosis.cuda_libraries is not None:
        yield f"  CUDA's libraries: {'; '.join(diagnosis.cuda_libraries) or 'loaded'}"


def _providers(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.providers:
        yield "Providers"
    for state in diagnosis.providers:
        yield f"  {state.provider:<9} {_verdict(state)}"


def _extras(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.extras:
        yield "Extras"
    for extra in diagnosis.extras:
        yield f"  {extra.name:<9} {extra}"


def _verdict(state: ProviderState) -> str:
    verdict = "works" if state.usable else "doesn't work" if state.offered else "absent"
    return f"{verdict}: {state.reason}" if state.reason and state.offered else verdict


def _asked(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"Asked for {diagnosis.asked}: {'runs on ' + diagnosis.runs_on if diagnosis.runs_on else 'does not run'}"
    for note in diagnosis.notes:
        yield f"  note: {note}"
    for trial in diagnosis.graphs:
        yield f"  {trial.role} {trial.precision} on {trial.provider}"
        for share in trial.placement.shares:
            yield f"    {share.execution_provider}: {share.nodes} nodes, {share.milliseconds:.1f} ms"
