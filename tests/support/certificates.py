"""An authority with the hub's and the nodes' certificates, made as docs/nodes.md says."""

from __future__ import annotations

import subprocess
from pathlib import Path

from jupyter_vgpu.client import Tls

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """One for each hub, in a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        self.ca, self._key = directory / f"{name}.crt", directory / f"{name}.key"
        usage = "keyUsage=critical,keyCertSign,cRLSign"
        subject = ["-subj", f"/CN={name}", "-days", "30", "-addext", usage]
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.ca, *subject)

    def node(self, ip: str = "127.0.0.1") -> Tls:
        """For servers alone."""
        return self._sign("node", f"extendedKeyUsage=serverAuth\nsubjectAltName=IP:{ip}\n")

    def hub(self) -> Tls:
        return self._sign("hub", "extendedKeyUsage=clientAuth\n")

    def _sign(self, name: str, extensions: str) -> Tls:
        key, request, cert = (self._directory / f"{name}.{ending}" for ending in ("key", "csr", "crt"))
        (self._directory / f"{name}.ext").write_text(extensions)
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        by = ["-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", "30"]
        _openssl("x509", "-req", "-in", request, *by, "-extfile", self._directory / f"{name}.ext", "-out", cert)
        return Tls(str(self.ca), str(cert), str(key))
