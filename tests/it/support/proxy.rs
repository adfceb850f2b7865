//! A TCP proxy that can do to a connection what networks do.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

use super::{PATIENCE, free_port, until};

/// What becomes of bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Pass,
    /// They stay where they are, and the connection looks healthy.
    Stall,
    /// So many bytes a second.
    Slow(u32),
}

struct Link {
    /// The port by which the server knows it.
    port: u16,
    to_server: watch::Sender<Flow>,
    to_client: watch::Sender<Flow>,
    pumps: [AbortHandle; 2],
}

struct State {
    upstream: Mutex<SocketAddr>,
    /// For connections to come: to the server, to the client.
    defaults: Mutex<(Flow, Flow)>,
    links: Mutex<Vec<Link>>,
}

/// Listens on a port of its own and forwards to `upstream`.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: Option<tokio::task::JoinHandle<()>>,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let state = Arc::new(State {
            upstream: Mutex::new(upstream),
            defaults: Mutex::new((Flow::Pass, Flow::Pass)),
            links: Mutex::new(Vec::new()),
        });
        let mut proxy = Self { address, state, accepting: None };
        proxy.allow().await;
        proxy
    }

    /// Refuses new connections; those that stand go on.
    pub async fn refuse(&mut self) {
        if let Some(task) = self.accepting.take() {
            task.abort();
            // Only the end of the task frees the port; it was told to end, so its error is that.
            let _ = task.await;
        }
    }

    /// Accepts connections (again).
    pub async fn allow(&mut self) {
        // Whoever tried to connect meanwhile may have the port for a moment.
        let listener = until("the port is free again", PATIENCE, async || {
            TcpListener::bind(self.address).await.ok()
        })
        .await;
        let state = self.state.clone();
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // An upstream that is away looks like a reset, as through a real proxy.
                let upstream = *state.upstream.lock().expect("no panic while held");
                if let Ok(server) = TcpStream::connect(upstream).await {
                    state.join(client, server);
                }
            }
        }));
    }

    /// Ends every connection that stands.
    pub fn cut(&self) {
        for link in self.state.links.lock().expect("no panic while held").drain(..) {
            for pump in link.pumps {
                pump.abort();
            }
        }
    }

    /// Connects those to come to another server.
    pub fn redirect(&self, upstream: SocketAddr) {
        *self.state.upstream.lock().expect("no panic while held") = upstream;
    }

    /// Sets the flow of the connections that stand, and of those to come.
    pub fn flow(&self, to_server: Flow, to_client: Flow) {
        *self.state.defaults.lock().expect("no panic while held") = (to_server, to_client);
        self.flow_of_standing(to_server, to_client);
    }

    /// Sets the flow of those connections only that the server knows by one of these ports; how many
    /// there are.
    pub fn flow_of(&self, ports: &[u16], to_server: Flow, to_client: Flow) -> usize {
        let links = self.state.links.lock().expect("no panic while held");
        let mut count = 0;
        for link in links.iter().filter(|link| ports.contains(&link.port)) {
            link.to_server.send_replace(to_server);
            link.to_client.send_replace(to_client);
            count += 1;
        }
        count
    }

    /// Sets the flow of the connections that stand only.
    pub fn flow_of_standing(&self, to_server: Flow, to_client: Flow) {
        for link in self.state.links.lock().expect("no panic while held").iter() {
            link.to_server.send_replace(to_server);
            link.to_client.send_replace(to_client);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(task) = self.accepting.take() {
            task.abort();
        }
        self.cut();
    }
}

impl State {
    fn join(&self, client: TcpStream, server: TcpStream) {
        for stream in [&client, &server] {
            // Best effort: it only makes the tests quicker.
            let _ = stream.set_nodelay(true);
        }
        let (to_server_flow, to_client_flow) = *self.defaults.lock().expect("no panic while held");
        let (to_server, server_flow) = watch::channel(to_server_flow);
        let (to_client, client_flow) = watch::channel(to_client_flow);
        let port = server.local_addr().map_or(0, |address| address.port());
        let (from_client, into_client) = client.into_split();
        let (from_server, into_server) = server.into_split();
        let pumps = [
            tokio::spawn(pump(from_client, into_server, server_flow)).abort_handle(),
            tokio::spawn(pump(from_server, into_client, client_flow)).abort_handle(),
        ];
        self.links.lock().expect("no panic while held").push(Link {
            port,
            to_server,
            to_client,
            pumps,
        });
    }
}

/// Moves bytes until either side ends; dropping the writing half tells the other side.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(now) = flow.wait_for(|flow| *flow != Flow::Stall).await.map(|flow| *flow) else {
            return;
        };
        let most = match now {
            Flow::Slow(rate) => (rate as usize / 20).clamp(1, buffer.len()),
            Flow::Pass | Flow::Stall => buffer.len(),
        };
        let count = tokio::select! {
            read = from.read(&mut buffer[..most]) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            },
            changed = flow.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        // The flow may have changed while we waited for bytes.
        if flow.wait_for(|flow| *flow != Flow::Stall).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        if matches!(now, Flow::Slow(_)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
