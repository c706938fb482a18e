"""The high-level API of docker-py against the engine that DOCKER_HOST names; fails with a traceback."""

import docker

client = docker.from_env(timeout=30)
assert client.ping()
assert client.version()["ApiVersion"] == "1.51"
assert client.info()["OSType"] == "linux"

image = client.images.get("busybox")
assert "busybox:latest" in image.tags
assert image.tag("pythons", tag="1")
assert "pythons:1" in [tag for found in client.images.list() for tag in found.tags]
client.images.remove("pythons:1")

none = {"network_mode": "none"}
assert client.containers.run("busybox", ["echo", "hello"], remove=True, **none) == b"hello\n"
try:
    client.containers.run("busybox", ["sh", "-c", "echo out; echo err >&2; exit 3"], remove=True, **none)
    raise AssertionError("a failing program raises")
except docker.errors.ContainerError as error:
    assert error.exit_status == 3 and b"err" in error.stderr, error

box = client.containers.run("busybox", ["sleep", "600"], detach=True, name="box", labels={"k": "v"}, environment={"A": "b"}, **none)
assert box.status in ("created", "running")
box.reload()
assert box.status == "running" and box.labels == {"k": "v"}
assert [found.name for found in client.containers.list(filters={"label": "k=v"})] == ["box"]
code, output = box.exec_run(["sh", "-c", "echo $A; exit 4"])
assert (code, output) == (4, b"b\n")
code, (out, err) = box.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
assert (code, out, err) == (0, b"o\n", b"e\n")
assert b"".join(box.exec_run(["seq", "3"], stream=True).output) == b"1\n2\n3\n"
box.rename("renamed")
assert client.containers.get("renamed").id == box.id
box.kill()
assert box.wait()["StatusCode"] == 137
box.start()
box.restart(timeout=0)
box.stop(timeout=0)
box.remove()
try:
    client.containers.get("renamed")
    raise AssertionError("a removed container is not found")
except docker.errors.NotFound:
    pass

talker = client.containers.run("busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; done"], detach=True, **none)
assert b"".join(talker.logs(stream=True, follow=True)) == b"1\n2\n3\n"
assert talker.logs(tail=1) == b"3\n"
assert talker.logs(timestamps=True).count(b"Z ") == 3
talker.remove(force=True)

cat = client.containers.create("busybox", ["cat"], stdin_open=True, **none)
socket = cat.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
cat.start()
socket._sock.sendall(b"through\n")
frame = socket.read(16)
assert frame[8:] == b"through\n", frame
socket.close()
cat.remove(force=True)
try:
    client.api.create_container("nosuchimage")
    raise AssertionError("an image that is not there is not found")
except docker.errors.ImageNotFound:
    pass
print("fine")
