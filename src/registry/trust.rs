//! Whom a TLS connection trusts: the host's CA bundle, a registry's own directory under certs.d, and the roots
//! compiled in where the host has no bundle.

use crate::error::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// Where distributions keep their bundle, in Go's order.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// A bundle larger than this is not one.
const FILE_MAX: u64 = 16 << 20;

/// The TLS settings for a registry host ("example.com:5000"). `verify` is false for an insecure registry.
pub fn tls_config(host: &str, certs_d: &Path, verify: bool) -> Result<TlsConfig> {
    let own = Own::read(&certs_d.join(host))?;
    let mut roots = bundle();
    roots.extend(own.authorities);
    // Without any certificate of the host's: Mozilla's, compiled in.
    let roots = if roots.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&roots) };
    Ok(TlsConfig::builder().root_certs(roots).client_cert(own.client).disable_verification(!verify).build())
}

fn bundle() -> Vec<Certificate<'static>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = named.into_iter().chain(BUNDLES.iter().map(PathBuf::from));
    files.filter_map(|path| read(&path).ok()).map(|pem| certificates(&pem)).find(|list| !list.is_empty()).unwrap_or_default()
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

/// A registry's own directory: `*.crt` are authorities, `*.cert` with `*.key` a client certificate.
#[derive(Default)]
struct Own {
    authorities: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

impl Own {
    fn read(dir: &Path) -> Result<Own> {
        let mut own = Own::default();
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(own) };
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        paths.sort();
        for path in paths {
            let failed = |e: &std::io::Error| Error::io(format!("open {}", path.display()), e);
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => own.authorities.extend(certificates(&read(&path).map_err(|e| failed(&e))?)),
                Some("cert") => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let key_path = path.with_extension("key");
                    let missing = || {
                        let key = key_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                        Error::invalid(format!(
                            "missing key {key} for client certificate {name}. CA certificates must use the extension .crt"
                        ))
                    };
                    let key = read(&key_path).map_err(|_| missing())?;
                    let key = PrivateKey::from_pem(&key).map_err(|_| missing())?;
                    let chain = certificates(&read(&path).map_err(|e| failed(&e))?);
                    own.client = Some(ClientCert::new_with_certs(&chain, key));
                }
                Some("key") if !path.with_extension("cert").exists() => {
                    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let (cert, key) = (name(&path.with_extension("cert")), name(&path));
                    return Err(Error::invalid(format!("missing client certificate {cert} for key {key}")));
                }
                _ => {}
            }
        }
        Ok(own)
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_its_certificate_go_together() {
        let dir = std::env::temp_dir().join(format!("coracle-trust-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("client.cert"), "").unwrap();
        let no_key = Own::read(&dir).err().map(|e| e.message);
        std::fs::remove_file(dir.join("client.cert")).unwrap();
        std::fs::write(dir.join("client.key"), "").unwrap();
        let no_cert = Own::read(&dir).err().map(|e| e.message);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            no_key.as_deref(),
            Some("missing key client.key for client certificate client.cert. CA certificates must use the extension .crt")
        );
        assert_eq!(no_cert.as_deref(), Some("missing client certificate client.cert for key client.key"));
        assert!(Own::read(&dir).unwrap().client.is_none());
    }
}
