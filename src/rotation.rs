//! Secrets in files are read again when they change, so that rotating one needs no restart.
//!
//! Kubernetes changes a mounted Secret by swapping a symbolic link, which watching the file itself
//! does not see; so the file is read on a period instead and compared.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    auth::{Authenticator, api_key::ApiKeys},
    config::{Config, Jwt, secrets},
};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Keeps the keys of tokens and the API keys as their files say. Returns at once if none comes from
/// a file.
pub async fn run(mut config: Config, authenticator: Arc<Authenticator>, keys: Arc<ApiKeys>) {
    let keys_file = config.api.keys_file.clone();
    if !issuers(&mut config).any(|jwt| has_files(jwt)) && keys_file.is_none() {
        return;
    }
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = None;
    loop {
        tick.tick().await;
        let mut faults = Vec::new();
        let profile = config.profile;
        let mut rotated = false;
        for jwt in issuers(&mut config).filter(|jwt| has_files(jwt)) {
            let old = jwt.clone();
            match off_loop(move || secrets::issuer_again(&old, profile)).await {
                Ok(Some(new)) => {
                    *jwt = new;
                    rotated = true;
                }
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        if rotated {
            authenticator.replace(&config);
            tracing::info!(target: "audit", action = "rotated", what = "auth.jwt");
        }
        if let Some(path) = keys_file.clone() {
            match off_loop(move || secrets::api_keys(&path, profile)).await {
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

fn issuers(config: &mut Config) -> impl Iterator<Item = &mut Jwt> {
    let more = config.auth.issuers.iter_mut().map(|issuer| &mut issuer.jwt);
    std::iter::once(&mut config.auth.jwt).chain(more)
}

fn has_files(jwt: &Jwt) -> bool {
    jwt.secret_file.is_some()
        || jwt.secret_previous_file.is_some()
        || !jwt.public_key_files.is_empty()
}

/// Off the event loop: a file may sit on a slow volume.
async fn off_loop<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
