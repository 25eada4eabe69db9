"""The cost of a run as tables."""

from typing import Any

from kinemae.data_tools.text_table import short, table

_SHOWN_GPUS = ("h100", "h200")
_TITLES = {
    "eager": "eager",
    "compiled": "compiled (engine.compile)",
    "all_compiled": "if all were one graph and the copy to the device took no time",
}


def as_text(cost: dict[str, Any]) -> str:
    """Parameters and FLOPs, the memory of a device if it is given, the ledger, and the predicted speed."""
    memory = [_memory(cost)] if "memory" in cost else []
    parts = (_summary(cost), *memory, _ledger(cost), _prediction(cost))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _summary(cost: dict[str, Any]) -> list[str]:
    parameters, flops, tokens = cost["parameters"], cost["flops"], cost["tokens"]
    return [
        f"parameters   {short(parameters['all'])}, trained {short(parameters['trainable'])}",
        f"tokens       {tokens['grid']} per clip: {tokens['visible']} visible, "
        f"{tokens['predicted']} predicted",
        f"FLOPs        per clip {short(flops['forward'])} forward, {short(flops['training'])} training; per "
        f"update {short(flops['update'])}",
        f"activations  per clip {short(cost['plain']['held']['per_clip'])}B",
    ]


def _memory(cost: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{row['stage']}{' checkpointing' if row['recomputes'] else ''}",
            f"{row['bytes']['all'] / 1e9:.2f}",
            str(row["largest_micro_batch"]),
        ]
        for row in cost["memory"]
    ]
    return [
        f"memory of a device in GB, {cost['machine']['memory_gb']:g} available, micro-batch "
        f"{cost['batch']['micro']}",
        *table(["ZeRO", "all", "largest micro-batch"], rows),
        *(f"warning: {warning}" for warning in cost["warnings"]),
    ]


def _ledger(cost: dict[str, Any]) -> list[str]:
    ledger = cost["ledger"]
    head = ["part", "operations", "casts", "elementwise bytes", "matmul FLOPs", "attention FLOPs"]
    rows = [
        [
            part,
            _both(f"{eager['operations']}", f"{compiled['operations']}"),
            _both(f"{eager['casts']}", f"{compiled['casts']}"),
            _both(short(eager["elementwise_bytes"]), short(compiled["elementwise_bytes"])),
            short(eager["matmul_flops"]),
            short(eager["attention_flops"]),
        ]
        for part, eager in ledger["eager"].items()
        for compiled in [ledger["compiled"][part]]
    ]
    return [
        f"operations of a step of one micro-batch of {ledger['clips']} clips; bytes and FLOPs of a clip",
        "forward and backward, eager > compiled (engine.compile)",
        *table(head, rows),
    ]


def _both(eager: str, compiled: str) -> str:
    return eager if eager == compiled else f"{eager} > {compiled}"


def _prediction(cost: dict[str, Any]) -> list[str]:
    prediction = cost["prediction"]
    assumed = prediction["assumptions"]
    found = {gpu: prediction[gpu] for gpu in _SHOWN_GPUS}
    rows = [
        [
            title,
            *(f"{1 / one[name]['seconds_per_clip']:.0f}  {one[name]['mfu']:.2f}" for one in found.values()),
        ]
        for name, title in _TITLES.items()
    ]
    return [
        "predicted clips/s and MFU, not measured, without waits for videos and communication",
        *table(["ledger", *found], rows),
        f"assumed: {assumed['matmul']:g} of the peak in matrix products, "
        f"{assumed['attention']:g} in attention, "
        f"{assumed['bandwidth']:g} of the",
        f"memory bandwidth, {assumed['launch_us']:g} us of the host for an operation, "
        f"{assumed['transfer_gb_s']:g} GB/s from host memory",
    ]
