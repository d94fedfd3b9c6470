"""Keys in a URI are refused and shown nowhere, whatever their form; URIs without them are taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import SPACE, voxtune

from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.core.storage import open_storage, place_of_data, without_keys


@pytest.mark.parametrize("verb", ["prepare", "launch", "doctor", "check", "train", "resume"])
def test_keys_in_the_uri_are_refused_and_not_repeated(verb: str, tmp_path: Path) -> None:
    uri = "s3://AKIAEXAMPLE:begin/end@cases/brats"
    (tmp_path / "space.yaml").write_text(SPACE)
    words = {
        "prepare": [uri],
        "launch": [tmp_path / "space.yaml", "--data", uri, "--out", tmp_path / "run"],
        "doctor": ["--data", uri],
        "check": [tmp_path / "space.yaml", "--set", f"train.data_dir={uri}"],
        "train": ["--data_dir", uri, "--output_dir", tmp_path / "out"],
        "resume": [tmp_path / "run", "--from", "s3://AKIAEXAMPLE:begin/end@bucket"],
    }
    done = voxtune(verb, *words[verb])
    assert done.returncode == 2, done.stdout
    assert "s3://...: no keys in the URI of --data (train.data_dir), --storage or --from" in done.stderr
    assert "put them into the environment: AWS_ACCESS_KEY_ID" in done.stderr
    for part in ("AKIAEXAMPLE", "begin", "end@"):
        assert part not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:HIDDEN@bucket/x",
        "s3://key:HID/DEN@bucket/x",
        "s3://key:HID?DEN#HIDDEN@HIDDEN@bucket/x",
        "s3://HIDDEN@bucket/x",
        "abfs://container:HID/DEN@account.dfs.core.windows.net/x",
        "abfs://:HIDDEN@account.blob.core.windows.net/x",
        "abfs://container@account.dfs.core.windows.net/x?client_secret=HIDDEN",
        "abfss://container@account.dfs.core.windows.net/x?sv=2024&sig=HIDDEN",
        "abfs://container/x?client%5Fsecret=HIDDEN",
        "abfs://container/x?sas_token=HIDDEN",
        "s3://bucket/x?scheme=http&Access_Key=HIDDEN",
        "s3://bucket/x?X-Amz-Signature=HIDDEN",
        "s3://bucket/x?password=HIDDEN",
        "s3://bucket/x?endpoint_override=http%3A%2F%2Fuser%3AHIDDEN%40host",
    ],
)
def test_a_uri_with_keys_is_refused_and_only_its_scheme_shown(uri: str) -> None:
    shown = uri.partition("://")[0] + "://..."
    for refuse in (place_of_data, open_storage, lambda uri: make_config({"data_dir": uri})):
        with pytest.raises(InputError, match=r"no keys in the URI") as error:
            refuse(uri)
        assert shown in str(error.value)
        assert "HID" not in str(error.value)
    assert (without_keys(uri), without_keys([uri, 1])) == (shown, [shown, 1])
    with pytest.raises(InputError, match=re.escape(f"depth is {shown!r}; expected")) as error:
        make_config({"depth": uri})
    assert "HID" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "abfs://container@account.dfs.core.windows.net/brats",
        "abfss://container@account.dfs.core.windows.net/brats?enable_tls=true",
        "abfs://account@127.0.0.1:10000/container/brats",
        "s3://bucket/brats?endpoint_override=http%3A%2F%2F127.0.0.1%3A9000&scheme=http&region=us-east-1",
        "s3://bucket/a@b/2024:1?endpoint_override=127.0.0.1:9000&region=us-east-1",
        "s3://bucket/run%3A1%40home?region=us-east-1",
        "gs://bucket/brats",
    ],
)
def test_a_uri_without_keys_is_taken(uri: str) -> None:
    assert place_of_data(uri) == make_config({"data_dir": uri}).data_dir == without_keys(uri) == uri
    open_storage(uri)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://key:HIDDEN/x", "Cannot parse URI: 's3://...'"),  # the bucket was forgotten
        ("s4://HIDDEN/x", "Unrecognized filesystem type in URI: s4://..."),
    ],
)
def test_a_uri_that_is_none_is_not_shown_and_what_is_expected_is(uri: str, why: str) -> None:
    with pytest.raises(InputError) as error:
        open_storage(uri)
    text = str(error.value)
    assert text.startswith(f"{uri[:5]}...: no storage: {why}")
    assert "expected a URI such as s3://BUCKET/FOLDER" in text
    assert "correct --data (train.data_dir), --storage or --from" in text
    assert "HIDDEN" not in text
