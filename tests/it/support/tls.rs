//! Certificates of the tests' own making, and clients that trust them.

use std::{net::SocketAddr, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::client::IntoClientRequest};

/// An authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Pair {
    /// Writes both, the certificate first.
    pub fn write(&self, cert: &Path, key: &Path) {
        std::fs::write(cert, &self.cert).expect("a file");
        std::fs::write(key, &self.key).expect("a file");
    }

    /// The certificate as it goes over the wire.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("PEM")
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this machine.
    pub fn pair(&self) -> Pair {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("legal names");
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// A client that trusts this authority, offers these protocols, and shows this certificate.
    pub fn client(&self, alpn: &[&str], own: Option<&Pair>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM");
        roots.add(root).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(
                    vec![pair.der()],
                    PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("PEM"),
                )
                .expect("a certificate with its key"),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// A TLS connection.
    ///
    /// # Errors
    /// Where the handshake fails.
    pub async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        dial(&self.client(&[], None), address, None).await
    }

    /// A WebSocket over TLS, of whoever this token is for.
    pub async fn websocket(
        &self,
        address: SocketAddr,
        token: &str,
        receive_buffer: Option<u32>,
    ) -> WebSocketStream<TlsStream<TcpStream>> {
        let stream = dial(&self.client(&[], None), address, receive_buffer).await.expect("TLS");
        let request = format!("wss://{address}/ws/notifications?token={token}")
            .into_client_request()
            .expect("a legal request");
        tokio_tungstenite::client_async(request, stream).await.expect("an upgrade").0
    }
}

/// Connects with this client.
///
/// # Errors
/// Where the handshake fails.
pub async fn dial(
    client: &TlsConnector,
    address: SocketAddr,
    receive_buffer: Option<u32>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    client.connect(ServerName::from(address.ip()), stream).await
}
