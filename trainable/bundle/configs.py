"""The configs of a bundle: what the network reads and returns, and how MONAI runs it, as `monai.bundle` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainable.cases.grid import ORIENTATION
from trainable.cases.labels import LabelConvention
from trainable.core.brats import REGIONS
from trainable.core.config import TrainConfig
from trainable.core.package_version import version

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MONAI_VERSION = "1.6.0"  # of which the tests run bundles
VERSION = "1.0.0"  # of an exported bundle; who changes one raises it
CHANNELS = {"0": "FLAIR", "1": "T1", "2": "T1 with contrast agent", "3": "T2"}
REGION_NAMES = dict(zip(REGIONS, ("whole tumour", "tumour core", "enhancing tumour"), strict=True))
RESEARCH_ONLY = "Research only. It is not a medical device and must not be used for diagnosis or treatment."
SCRIPTS = "scripts.brats_case"  # the module of a bundle's own transforms
ORIENTATION_LABELS = [["L", "R"], ["P", "A"], ["I", "S"]]  # how nibabel reads the letters of an orientation

LOGGING = """\
[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(message)s
"""


def label_values(labels: LabelConvention) -> list[int]:
    """Return the values of a convention's predictions: of TC without ET, of WT without TC, and of ET."""
    return [int(value) for value in labels.from_canonical(np.array([1, 2, 4], np.uint8))]


def data_format(config: TrainConfig) -> dict[str, Any]:
    """Return what the network reads and returns, as MONAI describes tensors: patches, and logits of the regions."""
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(CHANNELS),
        "spatial_shape": list(config.target_shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": CHANNELS,
    }
    logits = {str(index): f"logit of {region}" for index, region in enumerate(REGION_NAMES.values())}
    pred = {name: value for name, value in image.items() if name != "modality"}
    pred |= {"format": "segmentation", "num_channels": len(REGIONS), "channel_def": logits}
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}


def metadata(
    name: str,
    config: TrainConfig,
    labels: LabelConvention,
    *,
    networks: int,
    authors: str,
    means: Mapping[str, float],
    task_note: str,
) -> dict[str, Any]:
    """Return configs/metadata.json, which MONAI's schema SCHEMA accepts.

    Args:
        name: of the model.
        config: that the networks predict with.
        labels: of the predictions.
        networks: how many are averaged.
        authors: of the model, as given by the user.
        means: mean scores, by name.
        task_note: a sentence on data and scores, for the description.
    """
    core, around, enhancing = label_values(labels)
    classes = f"0 no tumour, {around} oedema (WT without TC), {core} necrosis (TC without ET), {enhancing} ET"
    together = "a 3D U-Net" if networks == 1 else f"{networks} 3D U-Nets, whose probabilities are averaged"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"exported by voxtune {version('voxtune')}"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": version("torch").partition("+")[0],  # without the build
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "scipy": version("scipy")},
        "name": name,
        "task": "Segmentation of brain tumours in four MRI modalities",
        "description": f"{together[0].upper()}{together[1:]}: labels of whole tumour, tumour core and enhancing tumour "
        f"from FLAIR, T1, T1ce and T2 in BraTS's layout, trained by voxtune. {task_note} docs/README.md is the card.",
        "authors": authors,
        "copyright": "see docs/license.txt",
        "data_source": "see docs/data_license.txt",
        "data_type": "nibabel",
        "image_classes": "4 channels: FLAIR, T1, T1ce, T2, skull-stripped, of one grid; z-scores of non-zero voxels",
        "label_classes": classes,
        "pred_classes": f"3 channels: logits of WT, TC and ET; after post-processing one channel: {classes}",
        "eval_metrics": dict(means),
        "intended_use": RESEARCH_ONLY,
        "references": ["Menze et al., The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS), IEEE TMI 2015"],
        "network_data_format": data_format(config),
    }


def inference(config: TrainConfig, labels: LabelConvention, spacing: Sequence[float]) -> dict[str, Any]:
    """Return configs/inference.json: `monai.bundle run` predicts the cases in dataset_dir into output_dir.

    Args:
        config: that the networks predict with.
        labels: of the predictions.
        spacing: voxel size in mm that the networks were trained on, of the axes in LPS.
    """
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "network": "$@network_def.eval()",
        "datalist": {"_target_": f"{SCRIPTS}.find_cases", "folder": "@dataset_dir"},
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(config, spacing)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": {
            "_target_": f"{SCRIPTS}.CaseInferer",
            "roi_size": list(config.target_shape),
            "sw_batch_size": config.batch_size,
            "overlap": config.overlap,
            "mirror": config.mirror,
            "amp": config.amp,
        },
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing(config, labels)},
        "evaluator": {
            "_target_": f"{SCRIPTS}.CaseRunner",
            "dataset": "@dataset",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
        },
        "run": ["$@evaluator.run()"],
    }


def preprocessing(config: TrainConfig, spacing: Sequence[float]) -> list[dict[str, Any]]:
    """Return the transforms from a case's files to the network's input: as cases are cached and normalised."""
    axes = {"axcodes": ORIENTATION, "labels": ORIENTATION_LABELS}
    checks = {"spacing": list(spacing), "background": config.background}
    crop = {"source_key": "image", "select_fn": "$lambda voxels: voxels != 0"}
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", **axes},
        {"_target_": f"{SCRIPTS}.CheckImagesd", "keys": "image", **checks},
        {"_target_": "CropForegroundd", "keys": "image", **crop},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
    ]


def postprocessing(config: TrainConfig, labels: LabelConvention) -> list[dict[str, Any]]:
    """Return the transforms from the inferer's probabilities to OUT/CASE.nii.gz on the grid of the case's files."""
    cleaning = {"min_component": config.min_component, "et_threshold": config.et_threshold}
    inverted = {"orig_keys": "image", "transform": "@preprocessing", "nearest_interp": True, "to_tensor": True}
    saved = {
        "output_dir": "@output_dir",
        "output_postfix": "",
        "output_dtype": "uint8",
        "resample": False,
        "separate_folder": False,
        "output_name_formatter": {"_target_": f"{SCRIPTS}.case_file_name", "_mode_": "callable"},
    }
    return [
        {"_target_": f"{SCRIPTS}.LabelsFromRegionsd", "keys": "pred", "values": label_values(labels), **cleaning},
        {"_target_": "Invertd", "keys": "pred", **inverted},
        {"_target_": "SaveImaged", "keys": "pred", **saved},
    ]
