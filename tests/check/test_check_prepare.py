"""The check of the exercise on token files, where the attempts do not reach."""

import os

from course import check
from slm.files import writing


def test_a_stub_is_told_apart_and_the_package_s_own_way_passes():
    def stub(*arguments):
        raise NotImplementedError("your turn")

    def published(path, data):
        with writing(path) as part:
            part.write_bytes(data)

    assert "still the stub" in check.write_whole(stub).message
    assert check.write_whole(published).passed


def test_a_kill_in_the_check_is_no_error_of_the_learner():
    def careful(path, data):
        part = path.with_name(path.name + ".tmp")
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    assert check.write_whole(careful).passed


def test_os_sync_forces_too():
    def synced(path, data):
        part = path.with_name(path.name + ".tmp")
        part.write_bytes(data)
        os.sync()
        os.replace(part, path)

    assert check.write_whole(synced).passed
