//! What the commands that talk to a running gateway have in common.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use reqwest::{Certificate, Client, ClientBuilder, Response};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;

use super::failure::Failure;
use crate::config::Sources;

/// Whom a client command believes.
#[derive(Args, Debug, Default)]
pub(super) struct Trust {
    #[arg(
        long,
        // For commands that have commands of their own.
        global = true,
        value_name = "FILE",
        help = "Authorities to trust instead of the system's, in PEM [env: BELFRY_CA_FILE]"
    )]
    ca_file: Option<PathBuf>,
}

impl Trust {
    /// The file's text; `None`: the system's authorities.
    fn pem(&self, sources: &Sources) -> Result<Option<Vec<u8>>, Failure> {
        let var = || sources.var("BELFRY_CA_FILE").map(PathBuf::from);
        let Some(path) = self.ca_file.clone().or_else(var) else { return Ok(None) };
        std::fs::read(&path)
            .map(Some)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
    }

    /// Applies it to a client for HTTP.
    pub(super) fn apply(
        &self,
        client: ClientBuilder,
        sources: &Sources,
    ) -> Result<ClientBuilder, Failure> {
        let Some(pem) = self.pem(sources)? else { return Ok(client) };
        let authorities = Certificate::from_pem_bundle(&pem)
            .map_err(|error| Failure::new(format!("--ca-file: {}", chain(&error))))?;
        Ok(client.tls_certs_only(authorities))
    }

    /// The same for a WebSocket; `None`: the system's authorities.
    pub(super) fn rustls(&self, sources: &Sources) -> Result<Option<Arc<ClientConfig>>, Failure> {
        let Some(pem) = self.pem(sources)? else { return Ok(None) };
        let bad =
            |error: &dyn std::error::Error| Failure::new(format!("--ca-file: {}", chain(error)));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| bad(&error))?;
            roots.add(certificate).map_err(|error| bad(&error))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some(Arc::new(config)))
    }
}

/// Runs a client command to its end.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // An error means that there is a provider already, which is as good.
    aws_lc_rs::default_provider().install_default().unwrap_or_default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?
        .block_on(work)
}

/// A client for the internal API, which no proxy stands before.
pub(super) fn http(
    timeout: Duration,
    trust: impl FnOnce(ClientBuilder) -> Result<ClientBuilder, Failure>,
) -> Result<Client, Failure> {
    let client = Client::builder()
        .no_proxy()
        .timeout(timeout)
        .user_agent(concat!("belfry/", env!("CARGO_PKG_VERSION")));
    trust(client)?.build().map_err(|error| Failure::new(format!("cannot start: {}", chain(&error))))
}

/// An error with its causes: reqwest says the interesting part last.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Problem details (RFC 9457), as far as a person reads them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    errors: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    #[serde(default)]
    pointer: String,
    detail: String,
}

/// Puts an answer that is an error into words.
pub(super) async fn refusal(response: Response) -> Failure {
    let status = response.status();
    let retry = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    match response.text().await {
        Ok(body) => Failure::Message(describe(&status.to_string(), retry.as_deref(), &body)),
        Err(error) => Failure::Message(format!("{status}, and then: {}", chain(&error))),
    }
}

/// `422 Unprocessable Content: the event is not valid` and a line for every member at fault.
pub(super) fn describe(status: &str, retry: Option<&str>, body: &str) -> String {
    let mut text = status.to_owned();
    if let Ok(problem) = serde_json::from_str::<Problem>(body) {
        for part in [problem.title, problem.detail].into_iter().flatten() {
            text.push_str(": ");
            text.push_str(&part);
        }
        for member in problem.errors {
            text.push_str("\n  ");
            if !member.pointer.is_empty() {
                text.push_str(&member.pointer);
                text.push_str(": ");
            }
            text.push_str(&member.detail);
        }
    } else if !body.trim().is_empty() {
        text.push_str(": ");
        text.push_str(body.trim());
    }
    if let Some(seconds) = retry {
        text.push_str("\n  try again in ");
        text.push_str(seconds);
        text.push_str(" s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_line_by_line() {
        let body = r#"{"type":"urn:belfry:problem:invalid-event","title":"Invalid event","status":422,
            "errors":[{"pointer":"/to/user","detail":"must not be empty"},{"detail":"and more"}]}"#;
        assert_eq!(
            describe("422 Unprocessable Content", None, body),
            "422 Unprocessable Content: Invalid event\n  /to/user: must not be empty\n  and more"
        );
    }

    #[test]
    fn what_is_no_problem_is_told_as_it_is() {
        assert_eq!(describe("502 Bad Gateway", None, " <html> \n"), "502 Bad Gateway: <html>");
        assert_eq!(describe("404 Not Found", None, ""), "404 Not Found");
        let text = describe("503 Service Unavailable", Some("2"), r#"{"title":"Redis is away"}"#);
        assert_eq!(text, "503 Service Unavailable: Redis is away\n  try again in 2 s");
    }
}
