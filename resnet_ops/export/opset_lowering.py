"""Rewrite graphs for opsets that are older than torch's exporter can write, for older runtimes.

Not by `onnx.version_converter`, which lacks the way down of `Relu` (14) and `Pad` (18), though nothing that we use of
them has changed. What has changed are inputs that were attributes, and attributes that are new.
"""

import onnx
from onnx import helper, numpy_helper

OLDEST_EXPORTED = 18  # by torch 2.15, which writes 18 in silence where it is asked for less


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite a network's graph, as torch exports it, for an older opset, and check it against that.

    Raises:
        onnx.checker.ValidationError: It has something that the opset does not have.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.dims}
    for node in graph.node:
        if node.op_type == "ReduceMean":  # whose axes were an attribute until 18
            node.attribute.append(helper.make_attribute("axes", constants[node.input.pop()].tolist()))
        # Newer attributes have their defaults, or, as `allowzero` of shapes without a zero, no effect.
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        kept = [attribute for attribute in node.attribute if attribute.name in known]
        del node.attribute[:]
        node.attribute.extend(kept)
    used = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], model.opset_import[:]
    graph.initializer.extend(tensors)
    model.opset_import.append(helper.make_opsetid("", opset))
    onnx.checker.check_model(model, full_check=True)
