//! From an admitted request to a running connection, over either transport.

use std::rc::Rc;

use super::{admission::Admitted, public::Worker};
use crate::{
    connection::{Connection, Inbound},
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

/// Registers a connection, which then has to run. To be called before the head of the answer is written: the
/// welcome is queued first and the registration stands then, so nothing that is published after
/// the handshake is missed or comes before the welcome.
pub(super) fn arrive<I: Inbound + 'static>(
    worker: &Worker,
    Admitted { id, method, principal, permit, seat, pass, made, opening }: Admitted,
    transport: Transport,
    outbox: Rc<Outbox>,
    link: Link,
    inbound: I,
) -> Connection<I> {
    let heartbeat = worker.settings.heartbeat.as_millis();
    let welcome = Notice::Welcome {
        connection: &id.to_string(),
        user: principal.user.as_str(),
        groups: &principal.groups,
        cursor: &opening.cursor.to_string(),
        heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
        resumed: opening.resumed,
        lost: &opening.lost.iter().map(ToString::to_string).collect::<Vec<_>>(),
    };
    outbox.deliver(&welcome.frame().resets(opening.cursor));
    let member =
        Member { id, user: principal.user.clone(), session: principal.session, made, transport };
    let groups = principal.groups.clone().into();
    let registration = worker.shard.register(member, groups, opening.starts, Rc::clone(&outbox));
    let timer = worker.wheel.timer(Rc::clone(&outbox));
    let settings = Rc::clone(&worker.settings);
    let (seat, hold) = (Box::new(seat), Box::new(pass));
    worker.state.metrics.connect(transport, Some(method), ConnectResult::Accepted);
    tracing::debug!(connection = %id, transport = transport.label(), "connected");
    Connection {
        inbound,
        outbox,
        link,
        registration,
        resumes: opening.resumed.is_some(),
        permit,
        timer,
        principal,
        settings,
        seat,
        hold,
    }
}
