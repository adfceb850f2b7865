//! Secrets in files are read again when they change, so that rotating one needs no restart.
//!
//! Kubernetes changes a mounted Secret by swapping a symbolic link, which watching the file itself
//! does not see; so the file is read on a period instead and compared.

use std::{path::PathBuf, sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    auth::{Authenticator, api_key::ApiKeys, jwt::Verifier},
    config::{Config, secrets},
};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Keeps the JWT secret and the API keys as their files say. Returns at once if neither comes from
/// a file.
pub async fn run(mut config: Config, authenticator: Arc<Authenticator>, keys: Arc<ApiKeys>) {
    let (secret_file, keys_file) =
        (config.auth.jwt.secret_file.clone(), config.api.keys_file.clone());
    if secret_file.is_none() && keys_file.is_none() {
        return;
    }
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = None;
    loop {
        tick.tick().await;
        let mut faults = Vec::new();
        if let Some(path) = secret_file.clone() {
            match read(path, config.profile, secrets::jwt_secret).await {
                Ok(secret) => {
                    let old = config.auth.jwt.secret.as_ref().map(ExposeSecret::expose_secret);
                    if old != Some(secret.expose_secret()) {
                        config.auth.jwt.secret = Some(secret);
                        authenticator.replace(Verifier::new(&config));
                        tracing::info!(target: "audit", action = "rotated", what = "auth.jwt.secret");
                    }
                }
                Err(fault) => faults.push(fault),
            }
        }
        if let Some(path) = keys_file.clone() {
            match read(path, config.profile, secrets::api_keys).await {
                Ok(new) if new != config.api.keys => {
                    keys.replace(new.clone());
                    config.api.keys = new;
                    tracing::info!(target: "audit", action = "rotated", what = "api.keys");
                }
                Ok(_) => {}
                Err(fault) => faults.push(fault),
            }
        }
        // The same complaint once, however often the file is read.
        let now = (!faults.is_empty()).then(|| faults.join("; "));
        if now != complaint {
            if let Some(why) = &now {
                tracing::error!(
                    why,
                    "a secret file is no good; what it said before stays in force"
                );
            }
            complaint = now;
        }
    }
}

/// Off the event loop: a file may sit on a slow volume.
async fn read<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    path: PathBuf,
    profile: crate::config::Profile,
    parse: fn(&std::path::Path, crate::config::Profile) -> Result<T, E>,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(move || parse(&path, profile)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
