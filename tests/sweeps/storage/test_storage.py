import os
import signal
import subprocess
import sys

import optuna
import pytest

from core.errors import UserError
from sweeps.storage.storage import default_url, open_storage, safe_url


@pytest.mark.parametrize("scheme", ["journal", "sqlite"])
def test_a_study_outlives_the_process_that_made_it(tmp_path, scheme):
    url = {"journal": default_url(tmp_path / "deep" / "er"), "sqlite": f"sqlite:///{tmp_path}/new/runs.db"}[scheme]
    study = optuna.create_study(storage=open_storage(url), study_name="a")
    study.set_user_attr("kept", 1)
    assert optuna.load_study(storage=open_storage(url), study_name="a").user_attrs == {"kept": 1}


@pytest.mark.parametrize(
    "url, said",
    [
        ("runs/journal.log", "journal:PATH"),
        ("mysql://u:hunter2@h/db", "use journal:PATH, sqlite:///PATH, postgresql://"),
        ("redis://h", "use journal:PATH"),
        ("journal:", "names no file"),
        ("sqlite://", "in memory"),
        ("sqlite:////proc/nosuch/x.db", "can't be"),
        ("journal:/proc/nosuch/x.log", "can't be opened"),
    ],
)
def test_storages_that_cant_be_used_are_refused_in_one_line(url, said):
    with pytest.raises(UserError) as refusal:
        open_storage(url)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_an_unreachable_postgres_is_refused_without_its_password():
    with pytest.raises(UserError) as refusal:
        open_storage("postgresql://ada:hunter2@127.0.0.1:9/runs")
    assert "hunter2" not in str(refusal.value)
    assert "ada:***@127.0.0.1:9/runs" in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:hunter2@db.example/runs",
        "postgresql+psycopg2://ada:hunt@er2@db.example/runs",
        "postgresql://db.example/runs?user=ada&password=hunter2",
        "postgresql://db.example/runs?sslpassword=hunter2&x=1",
        "https://ada:hunter2@proxy:3128",
    ],
)
def test_passwords_are_masked(url):
    assert "hunt" not in safe_url(url)
    assert "er2" not in safe_url(url)
    assert "***" in safe_url(url)


def test_urls_without_passwords_stay_as_they_are():
    for url in ("journal:/data/runs/journal.log", "sqlite:////data/runs.db", "postgresql://db.example:5432/runs"):
        assert safe_url(url) == url


def test_the_journals_lock_ends_with_a_killed_holder(tmp_path):
    holder = (
        "import sys, time; from sweeps.storage.storage import open_storage;"
        "open_storage(sys.argv[1])._inner._backend._lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    url = default_url(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", holder, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still locked"))
    signal.alarm(25)  # Optuna's own lock would keep us for 30 s
    try:
        optuna.create_study(storage=open_storage(url), study_name="a")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres:/me:s3cretpw@nohost", "storage as it was given is not a URL"),
        ("postgresql:me:s3cretpw@nohost", "storage as it was given is not a URL"),
        ("postgresql://me:s3cr@etpw@nohost.invalid/db", "more than one '@'; write the one in the password as %40"),
    ],
)
def test_a_mistyped_url_does_not_show_its_password(url, said):
    with pytest.raises(UserError, match=said) as caught:
        open_storage(url)
    assert "s3cr" not in str(caught.value) and "etpw" not in str(caught.value)


@pytest.mark.parametrize("url", ["journal:~/j.log", "sqlite:///~/runs.db"])
def test_a_home_folder_in_a_url_is_one(url, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_storage(url).get_all_studies() == []
    assert [path.name for path in tmp_path.iterdir()] == ["home"] and any((tmp_path / "home").iterdir())
    with pytest.raises(UserError, match="'~nosuchperson' is nobody's home folder"):
        open_storage(url.replace("~", "~nosuchperson"))
