//! From an admitted request to a running connection, over either transport.

use std::rc::Rc;

use super::{admission::Admitted, public::Worker};
use crate::{
    connection::{Connection, Inbound},
    event::Cursor,
    frame::Notice,
    net::Link,
    outbox::Outbox,
    registry::Member,
    telemetry::{ConnectResult, Transport},
};

/// An empty queue for a connection of this worker.
pub(super) fn outbox(worker: &Worker) -> Rc<Outbox> {
    Outbox::new(worker.state.bounds, Rc::clone(worker.shard.metrics()))
}

/// Registers a connection and runs it. To be called before the head of the answer is written: the
/// welcome is queued first and the registration stands then, so nothing that is published after
/// the handshake is missed or comes before the welcome.
pub(super) fn arrive<I: Inbound + 'static>(
    worker: &Worker,
    Admitted { id, method, principal, permit, seat, pass, made }: Admitted,
    transport: Transport,
    outbox: Rc<Outbox>,
    link: Link,
    inbound: I,
) {
    let heartbeat = worker.settings.heartbeat.as_millis();
    let welcome = Notice::Welcome {
        connection: &id.to_string(),
        user: principal.user.as_str(),
        groups: &principal.groups,
        cursor: "",
        heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
        resumed: None,
        lost: &[],
    };
    outbox.deliver(&welcome.frame().resets(Cursor::default()));
    let member =
        Member { id, user: principal.user.clone(), session: principal.session, made, transport };
    let registration =
        worker.shard.register(member, principal.groups.clone().into(), Rc::clone(&outbox));
    let timer = worker.wheel.timer(Rc::clone(&outbox));
    let settings = Rc::clone(&worker.settings);
    let (seat, hold) = (Box::new(seat), Box::new(pass));
    let connection = Connection {
        inbound,
        outbox,
        link,
        registration,
        permit,
        timer,
        principal,
        settings,
        seat,
        hold,
    };
    actix_rt::spawn(connection.run());
    worker.state.metrics.connect(transport, Some(method), ConnectResult::Accepted);
    tracing::debug!(connection = %id, transport = transport.label(), "connected");
}
