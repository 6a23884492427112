"""Export of a structure as a program of torch.export, and evaluation of model files from elsewhere.

Nothing is unpickled, and no file that is read can run code of its own.
"""

import io
import json
import sys
from pathlib import Path

import pandas as pd
import torch

from sparring import progress, store
from sparring.device import choose
from sparring.evaluation import foreign, predict
from sparring.evaluation.programs import FACTS
from sparring.layout import HERE, Layout, replacing
from sparring.models import model_files, networks
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import EVALUATED_SPLITS
from sparring.params.sections import Network


def load(path: str | Path) -> Classifier:
    """Load the classifier in a model file of Sparring, on the CPU and in eval mode.

    It takes images (N, 3, H, W) in [0, 1], not normalised, and gives logits (N, classes). The file says what it is: no
    params.yaml is read. Raises InputError for a file that is missing or holds no classifier of Sparring.
    """
    path = Path(path)
    facts = model_files.facts(path)
    classes, size = facts.get("classes"), facts.get("image_size")
    if not isinstance(classes, list) or not isinstance(size, int):
        raise InputError(f"{path} does not say its classes and image_size; train it again with `dvc repro`")
    net = networks.create(foreign.network_of(facts, path), len(classes), size)
    foreign.load_tensors(net, path, len(classes), size)
    return net.eval()


def export(source: Path, target: Path) -> None:
    """Write the model file `source` as a program of torch.export, which torch.export.load reads without Sparring.

    The program takes images (N, 3, H, W) float32 in [0, 1], for any N, and gives logits (N, classes). Its extra file
    sparring.json has the model's facts. Raises InputError as `load` does, and for a name that does not end in .pt2.
    """
    if target.suffix != foreign.PROGRAM:
        raise InputError(f"{target} should end in {foreign.PROGRAM}, as programs of torch.export do")
    net, facts = load(source), model_files.facts(source)
    size = int(str(facts["image_size"]))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts, sort_keys=True)})
    with replacing(target) as temporary:
        temporary.write_bytes(buffer.getvalue())


def evaluate(
    params: Params, path: Path, network: Network | None, scaling: foreign.Scaling | None = None, layout: Layout = HERE
) -> pd.DataFrame:
    """Predict all clean and attacked test and held-out images with the model in a file, as `predict.evaluate` does.

    path: a safetensors file, of Sparring or of the architecture `network`; or a program of torch.export.
    scaling: the mean and standard deviation by which the model wants its images normalised.
    Returns columns index, split, seed (0), attack, label, prediction, confidence. Raises InputError where the file
    cannot be read, or its model is not one for these classes and images, or no fixed function that gives numbers.
    """
    device = choose(params)
    clean = {split: store.read(layout.clean / f"{split}.parquet") for split in EVALUATED_SPLITS}
    facts = clean["test"].metadata
    net, names = foreign.read(path, network, len(facts["classes"]), int(facts["shape"][0]), device)
    model = foreign.Model(net, path, len(facts["classes"]), scaling, device)
    foreign.check_fixed_function(model, path, clean["test"].image, device)
    remedy = "use a model of these classes, or, where the two mean the same, a file that does not name them"
    model.order = model_files.class_order(path, names, facts["classes"], remedy)
    batch_size = params.store.batch_size
    if names is None and scaling is None:
        problem = foreign.forgotten_scaling(net, path, len(facts["classes"]), clean["test"], batch_size, device)
        if problem is not None:
            print(f"warning: {problem}", file=sys.stderr)
    parts = []
    count = sum(map(len, clean.values())) * (1 + len(params.all_attacks))
    with progress.bar(f"evaluate {path.name}", count) as advance:
        for split, attack, images in predict.versions(params, layout, clean, None):
            rows = predict.classified(model, images, batch_size, device)
            parts.append(rows.assign(split=split, attack=attack, seed=0))
            advance(len(rows))
    return pd.concat(parts, ignore_index=True)
