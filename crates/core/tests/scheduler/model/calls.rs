//! Calls of clients, and what the reference says of their answers.

use std::time::Instant;

use sandyard_core::SandboxState;
use sandyard_types::SandboxId;
use tokio::sync::oneshot;

use super::{Busy, KnownSandbox, LIMIT, Model, Pending};
use crate::host::breathe;
use crate::life_cycle::{COLUMNS, CallAnswer, Cell, Column, call, row};

/// How far a call has come.
pub(super) enum CallProgress {
    Answered(CallAnswer),
    Hangs,
    /// A fault of the engine keeps it from its end.
    Stuck,
}

impl Model {
    pub(super) fn start(
        &mut self,
        client: usize,
        column: Column,
        of: Option<SandboxId>,
        work: impl Future<Output = CallAnswer> + Send + 'static,
    ) {
        let (sender, answer) = oneshot::channel();
        let task = self.tasks.spawn(async move {
            // A client that has left wants no answer.
            let _ = sender.send(work.await);
        });
        self.clients[client] = Some(Pending { answer, task, column, of });
    }

    /// Waits until a client's call is answered, or hangs on its sandbox.
    pub(super) async fn progress(&mut self, client: usize) -> CallProgress {
        let begun = Instant::now();
        for look in 0.. {
            let Some(pending) = &mut self.clients[client] else { return CallProgress::Stuck };
            if let Ok(answer) = pending.answer.try_recv() {
                self.clients[client] = None;
                return CallProgress::Answered(answer);
            }
            // These two are answered a little after their transition, when the next one may hang already.
            let is_over = matches!(pending.column, Column::Snapshot | Column::Fork)
                && pending.of.as_ref().is_some_and(|id| {
                    self.host.get(id).map_or(true, |seen| seen.state != SandboxState::Snapshotting)
                });
            let of = pending.of.as_ref().and_then(|id| self.known.get(id));
            let hanging = self.host.engine.hanging();
            if let Some(known) = of
                && !is_over
                && hanging.iter().any(|(_, on)| on.as_ref() == Some(&known.instance))
            {
                return CallProgress::Hangs;
            }
            if look > 30 && (self.may_fail || !hanging.is_empty()) {
                return CallProgress::Stuck;
            }
            if begun.elapsed() > LIMIT {
                self.fail("a call neither answers nor hangs");
            }
            breathe().await;
        }
        CallProgress::Stuck
    }

    /// Begins a call of a client, and checks what becomes of it at once.
    pub(super) async fn call(&mut self, client: usize, id: SandboxId, column: Column) {
        let (scheduler, team) = (self.host.scheduler.clone(), self.host.team);
        self.start(client, column, Some(id.clone()), call(scheduler, team, id.clone(), column));
        let Some(known) = self.known.get_mut(&id) else {
            // Killed, or never there.
            return self.check(client, &id, column, CallAnswer::NotFound).await;
        };
        if known.doubtful {
            return breathe().await;
        }
        let state = known.busy.as_ref().map_or(known.state, |busy| busy.state);
        if let Some(answer) = Self::serve(known, client, column, state) {
            self.check(client, &id, column, answer).await;
        } else if known.busy.as_ref().is_some_and(|busy| busy.clients == [client]) {
            self.resolve(&id).await;
        } else {
            breathe().await;
            breathe().await;
        }
        self.check_view(&id);
    }

    /// What the table does with a call in a state: it is answered at once as returned, or noted as what runs, joins
    /// or waits.
    pub(super) fn serve(
        known: &mut KnownSandbox,
        client: usize,
        column: Column,
        state: SandboxState,
    ) -> Option<CallAnswer> {
        let place = COLUMNS.iter().position(|other| *other == column).expect("a column");
        match row(state)[place] {
            Cell::Now(answer @ (CallAnswer::Done | CallAnswer::Resumed)) => {
                let state = match column {
                    Column::Pause => SandboxState::Pausing,
                    Column::Kill => SandboxState::Killing,
                    Column::Connect | Column::Resume => SandboxState::Resuming,
                    Column::Snapshot | Column::Fork => SandboxState::Snapshotting,
                    Column::SetTimeout | Column::Refresh => return Some(answer),
                };
                known.busy = Some(Busy { state, clients: vec![client] });
                None
            }
            Cell::Now(answer) => Some(answer),
            Cell::Then(_) => {
                let joins = matches!(
                    (state, column),
                    (SandboxState::Pausing, Column::Pause)
                        | (SandboxState::Resuming, Column::Connect | Column::Resume)
                        | (SandboxState::Killing, Column::Kill)
                );
                match &mut known.busy {
                    Some(busy) if joins => busy.clients.push(client),
                    _ => known.waiting.push_back(client),
                }
                None
            }
        }
    }

    /// Checks a call that must be answered at once.
    pub(super) async fn check(
        &mut self,
        client: usize,
        id: &SandboxId,
        column: Column,
        expected: CallAnswer,
    ) {
        let begun = Instant::now();
        while let Some(pending) = &mut self.clients[client] {
            match pending.answer.try_recv() {
                Ok(answer) if answer == expected => self.clients[client] = None,
                Ok(answer) => {
                    self.fail(&format!("{column:?} of {id} answers {answer:?}, not {expected:?}"));
                }
                Err(_) if begun.elapsed() > LIMIT => {
                    self.fail(&format!("{column:?} of {id} waits, and should answer {expected:?}"));
                }
                Err(_) => breathe().await,
            }
        }
    }

    /// Follows a sandbox's transitions until one hangs or all have ended.
    pub(super) async fn resolve(&mut self, id: &SandboxId) {
        loop {
            let Some(known) = self.known.get(id) else { return };
            let Some(busy) = &known.busy else { return };
            let (state, first) = (busy.state, busy.clients[0]);
            let Some(column) = self.clients[first].as_ref().map(|pending| pending.column) else {
                return self.doubt(id);
            };
            let answer = match self.progress(first).await {
                CallProgress::Answered(answer) => Some(answer),
                CallProgress::Hangs => return self.check_view(id),
                // The copies of a fork may hang after their image is made.
                CallProgress::Stuck if column == Column::Fork => None,
                CallProgress::Stuck => return self.doubt(id),
            };
            let expected = match column {
                Column::Connect | Column::Resume => CallAnswer::Resumed,
                _ => CallAnswer::Done,
            };
            if answer.is_none_or(|answer| answer != expected) {
                if !self.may_fail && answer.is_some() {
                    self.fail(&format!("{column:?} of {id} answers {answer:?} without a fault"));
                }
                return self.doubt(id);
            }
            let known = self.known.get_mut(id).expect("it was there");
            let joined = known.busy.take().map(|busy| busy.clients).unwrap_or_default();
            for client in joined.into_iter().skip(1) {
                self.check(client, id, column, expected).await;
            }
            let known = self.known.get_mut(id).expect("it was there");
            known.state = match state {
                SandboxState::Pausing => SandboxState::Paused,
                SandboxState::Killing => {
                    let left: Vec<usize> = known.waiting.drain(..).collect();
                    self.known.remove(id);
                    if !left.is_empty() {
                        self.fail(&format!("{left:?} waited for a kill"));
                    }
                    return;
                }
                _ => SandboxState::Running,
            };
            // All that waited is served at once, each by what the one before it has begun.
            let mut answers = Vec::new();
            for client in std::mem::take(&mut known.waiting) {
                let Some(column) = self.clients[client].as_ref().map(|pending| pending.column)
                else {
                    continue;
                };
                let state = known.busy.as_ref().map_or(known.state, |busy| busy.state);
                let answer = Self::serve(known, client, column, state);
                answers.extend(answer.map(|answer| (client, column, answer)));
            }
            for (client, column, answer) in answers {
                self.check(client, id, column, answer).await;
            }
        }
    }

    /// What clients see of a sandbox is what the reference says.
    pub(super) fn check_view(&self, id: &SandboxId) {
        let seen = self.host.get(id).ok().map(|sandbox| sandbox.state);
        let Some(known) = self.known.get(id) else {
            if seen.is_some() {
                self.fail(&format!("{id} is {seen:?}, and should be gone"));
            }
            return;
        };
        if known.doubtful {
            return;
        }
        let state = known.busy.as_ref().map_or(known.state, |busy| busy.state);
        if seen != state.is_visible().then_some(state) {
            self.fail(&format!("{id} is {seen:?}, and should be {state:?}"));
        }
        let listed = self.host.scheduler.list(self.host.team);
        let times = listed.iter().filter(|sandbox| sandbox.id == *id).count();
        if times != usize::from(state.is_visible()) {
            self.fail(&format!("{id} is listed {times} times while {state}"));
        }
    }
}
