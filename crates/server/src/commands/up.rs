//! `sandyard up`: serve until told to stop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api;
use crate::config::Config;
use crate::connection_budget::ConnectionBudget;
use crate::control_socket::{self, Asker, DONE};
use crate::data_dir::{DataDir, PublicUrls, RunningServer};
use crate::domain::Domain;
use crate::event_log;
use crate::installation::{Installation, bind};
use crate::proxy;
use crate::tls::Tls;
use crate::tokens::Tokens;

/// How long requests in flight may go on after a stop was asked for. Streams of commands that run have
/// no end of their own.
const GRACE: Duration = Duration::from_secs(2);

/// Why the server stops.
enum Stop {
    /// A signal: sandboxes stay.
    Leave(&'static str),
    /// `down`: everything ends; whoever asked is told how.
    End(Asker),
}

/// Serves until a signal, `down`, or a fault.
///
/// # Errors
/// What is missing at the start; what broke; what could not be stored at the end.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    let lock = data.lock()?;
    let budget = ConnectionBudget::raise()?;
    // Bound first: a port in use should cost nothing.
    let api_listener = bind("api.listen", config.api_listen).await?;
    let proxy_listener = bind("proxy.listen", config.proxy_listen).await?;
    let api_address = api_listener.local_addr()?;
    let proxy_address = proxy_listener.local_addr()?;
    let mut installation = Installation::start(&config, data.clone(), &budget).await?;
    let domain = config.proxy_domain.clone();
    let domain = domain.unwrap_or_else(|| Domain::local(proxy_address.port()));
    let tls = Tls::open(&data, &domain, config.tls.as_ref())?;
    let acceptor = tls.acceptor();

    let stop = CancellationToken::new();
    let scheduler = installation.scheduler.clone();
    // Two sets: what ends when it is told to stop, and what has no end of its own.
    let mut serving = JoinSet::<anyhow::Result<()>>::new();
    let mut watching = JoinSet::<anyhow::Result<()>>::new();
    watching.spawn({
        let scheduler = scheduler.clone();
        async move {
            scheduler.watch().await;
            Ok(())
        }
    });
    watching.spawn({
        let scheduler = scheduler.clone();
        async move {
            scheduler.watch_disk().await;
            Ok(())
        }
    });
    watching.spawn({
        let events = scheduler.events();
        async move {
            event_log::run(events).await;
            Ok(())
        }
    });
    watching.spawn({
        let scheduler = scheduler.clone();
        async move {
            scheduler.bound_frozen_memory().await;
            Ok(())
        }
    });
    watching.spawn({
        let scheduler = scheduler.clone();
        async move {
            scheduler.keep_pool().await;
            Ok(())
        }
    });
    let (downs, mut down_asked) = mpsc::channel(1);
    let socket = control_socket::listen(&data)?;
    watching.spawn({
        let scheduler = scheduler.clone();
        async move {
            control_socket::serve(socket, scheduler, downs).await;
            Ok(())
        }
    });
    let tokens: Arc<dyn Tokens> = installation.secrets.clone();
    watching.spawn(async move {
        tls.keep_fresh().await;
        Ok(())
    });
    let app =
        api::App { scheduler: scheduler.clone(), tokens: tokens.clone(), domain: domain.clone() };
    let service = api::Service::new(app);
    let serve_api = api::serve(api_listener, budget.api(), service.clone(), stop.clone());
    serving.spawn(async move {
        serve_api.await;
        Ok(())
    });
    let port = proxy::Port {
        routes: Arc::new(proxy::SchedulerRoutes::new(scheduler, tokens)),
        api: service,
        api_host: domain.api_host(),
        tls: acceptor,
    };
    let serve_proxy = proxy::serve(proxy_listener, budget.proxy(), port, stop.clone());
    serving.spawn(async move {
        serve_proxy.await;
        Ok(())
    });

    data.write_running(&RunningServer {
        pid: std::process::id(),
        api_url: own_url(api_address),
        public: PublicUrls {
            api: public_url(&config.api_public_url, api_address),
            sandbox: public_url(&config.proxy_public_url, proxy_address),
            s3: public_url(&config.gateway_public_url, installation.gateway_address),
        },
        bucket: config.bucket.to_string(),
        domain: domain.to_string(),
        own_certificate: config.tls.is_some(),
    })?;
    info!(
        api = %api_address,
        proxy = %proxy_address,
        gateway = %installation.gateway_address,
        data = %data.path().display(),
        "sandyard is up; 'sandyard env' prints what the SDKs need"
    );

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let reason = tokio::select! {
        _ = terminate.recv() => Ok(Stop::Leave("SIGTERM")),
        _ = interrupt.recv() => Ok(Stop::Leave("SIGINT")),
        Some(asker) = down_asked.recv() => Ok(Stop::End(asker)),
        // A part that ends by itself is a fault, never something to carry on without.
        Some(ended) = serving.join_next() => Err(fault(ended)),
        Some(ended) = watching.join_next() => Err(fault(ended)),
        ended = installation.gateway_ended() => Err(match ended {
            Ok(()) => anyhow::anyhow!("the S3 gateway ended by itself"),
            Err(error) => error,
        }),
    };
    stop.cancel();
    let drain = async { while serving.join_next().await.is_some() {} };
    if timeout(GRACE, drain).await.is_err() {
        info!(grace = ?GRACE, "requests that are still running are cut off");
    }
    serving.shutdown().await;
    watching.shutdown().await;
    let mut asker = None;
    let ended = match reason {
        Ok(Stop::Leave(signal)) => {
            info!(signal, "stopping; sandboxes stay for the next start");
            installation.leave().await
        }
        Ok(Stop::End(who)) => end(installation, asker.insert(who)).await,
        Err(fault) => {
            if let Err(error) = installation.leave().await {
                warn!(%error, "stopping after a fault");
            }
            Err(fault)
        }
    };
    data.remove_running()?;
    drop(lock);
    if let Some(asker) = asker {
        asker.finish();
    }
    ended
}

/// The configured base URL, or else the listener's own.
fn public_url(configured: &Option<String>, listener: SocketAddr) -> String {
    configured.clone().unwrap_or_else(|| own_url(listener))
}

/// The base URL of a listener for this machine's own programs. One that listens on all addresses listens
/// on the loopback address too, and no client should be told to connect to "all".
fn own_url(listener: SocketAddr) -> String {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listener.port()))
}

fn fault(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a part of the server ended by itself"),
        Ok(Err(error)) => error,
        Err(panic) => panic.into(),
    }
}

/// Ends everything and tells whoever asked how it goes.
async fn end(installation: Installation, asker: &mut Asker) -> anyhow::Result<()> {
    info!("going down: every sandbox ends");
    let mut tell = |line: String| {
        info!(line, "going down");
        asker.tell(&line);
    };
    let ended = installation.end(&mut tell).await;
    match &ended {
        Ok(()) => tell(DONE.to_owned()),
        Err(error) => tell(format!("{error:#}")),
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_what_they_can_connect_to() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("address");
        assert_eq!(public_url(&None, at("172.20.0.3:3000")), "http://172.20.0.3:3000");
        assert_eq!(public_url(&None, at("0.0.0.0:3003")), "http://127.0.0.1:3003");
        assert_eq!(public_url(&None, at("[::]:3003")), "http://[::1]:3003");
        let configured = Some("https://api.example".to_owned());
        assert_eq!(public_url(&configured, at("0.0.0.0:3000")), "https://api.example");
    }
}
