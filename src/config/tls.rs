//! `[public.tls]` and `[internal.tls]`: which files, and whether they can serve.
//!
//! The files are read in full at the start, so that a bad one is a fault like any other, and again
//! when they change.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use super::{
    fault::Problem,
    reader::{Reader, quoted},
    secrets,
};

/// The files of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and after it those that lead to a root; PEM.
    pub cert_file: PathBuf,
    /// Its private key; PEM.
    pub key_file: PathBuf,
    /// Certificates of those who vouch for clients; `None`: clients need none.
    pub client_ca_file: Option<PathBuf>,
}

/// The one protocol: a WebSocket cannot be opened over the others here.
const ALPN: &[u8] = b"http/1.1";

/// What is wrong, with the last part of the key that it is wrong with.
pub type TlsFault = (&'static str, Problem);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Every file that cannot serve.
    pub fn load(&self) -> Result<ServerConfig, Vec<TlsFault>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut faults = Vec::new();
        let mut keep = |key, problem| faults.push((key, problem));
        let chain = certificates(&self.cert_file).map_err(|fault| keep("cert_file", fault)).ok();
        let key = private_key(&self.key_file).map_err(|fault| keep("key_file", fault)).ok();
        let roots = self.client_ca_file.as_ref().and_then(|path| {
            certificates(path)
                .and_then(|found| roots(found, path))
                .map_err(|fault| keep("client_ca_file", fault))
                .ok()
        });
        if let (Some(chain), Some(key)) = (&chain, &key)
            && let Err(error) = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
        {
            let what = format!(
                "{} is not the key of the certificate in {}: {error}",
                self.key_file.display(),
                self.cert_file.display()
            );
            keep("key_file", Problem::new(what, "give the two that were made together"));
        }
        let (Some(chain), Some(key), true) = (chain, key, faults.is_empty()) else {
            return Err(faults);
        };
        build(provider, chain, key, roots).map_err(|error| {
            let what = format!("cannot serve TLS: {error}");
            vec![("cert_file", Problem::new(what, "check the files"))]
        })
    }
}

fn build(
    provider: Arc<rustls::crypto::CryptoProvider>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Option<RootCertStore>,
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match roots {
        None => builder.with_no_client_auth(),
        // Probes have no certificate; what else they may not have is decided where the routes are.
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?,
        ),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Clients that come back, as they all do after a restart of the router, skip the signature.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

fn roots(
    found: Vec<CertificateDer<'static>>,
    path: &std::path::Path,
) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    for certificate in found {
        roots.add(certificate).map_err(|error| {
            let what = format!("{} holds what is no authority: {error}", path.display());
            Problem::new(what, "write the certificates of those who sign your clients' into it")
        })?;
    }
    Ok(roots)
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let text = secrets::read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => {
            let what = format!("{} holds no certificate in PEM", path.display());
            Err(Problem::new(what, "it starts with -----BEGIN CERTIFICATE-----"))
        }
    }
}

fn private_key(path: &std::path::Path) -> Result<PrivateKeyDer<'static>, Problem> {
    let text = secrets::read(path)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        let what = format!("{} holds no private key in PEM", path.display());
        Problem::new(what, "it starts with -----BEGIN PRIVATE KEY-----, and has no passphrase")
    })
}

/// Reads the section; `None` where the listener has no TLS. `clients`: whether it can ask for
/// certificates of clients.
pub(super) fn read(reader: &mut Reader, section: &str, clients: bool) -> Option<Tls> {
    let mut path = |name: &str| {
        let key = format!("{section}.{name}");
        let text = reader.text(&key).unwrap_or_default();
        reader.note(&key, quoted(&text));
        (!text.is_empty()).then(|| PathBuf::from(text))
    };
    let (cert, key) = (path("cert_file"), path("key_file"));
    let client_ca_file = if clients { path("client_ca_file") } else { None };
    let (cert_file, key_file) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) if client_ca_file.is_none() => return None,
        (cert, key) => {
            for (name, path) in [("cert_file", cert), ("key_file", key)] {
                if path.is_none() {
                    let what = "is not set, and the other files of TLS are";
                    let advice = "set both cert_file and key_file, or none for plain HTTP";
                    reader.fault(&format!("{section}.{name}"), Problem::new(what, advice));
                }
            }
            return None;
        }
    };
    let tls = Tls { cert_file, key_file, client_ca_file };
    if let Err(faults) = tls.load() {
        for (name, problem) in faults {
            reader.fault(&format!("{section}.{name}"), problem);
        }
    }
    Some(tls)
}
