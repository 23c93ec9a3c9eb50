//! Faults: what somebody does to containers, a crash of the server, and healing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sandyard_core::{ContainerState, RuntimeEvent, SnapshotFilter};
use sandyard_types::SandboxId;

use super::{KnownSandbox, LIMIT, Model};
use crate::host::breathe;

impl Model {
    /// Somebody does something to a container.
    pub(super) async fn interfere(&mut self) {
        let Some(id) = self.pick() else { return };
        let instance = self.known[&id].instance.clone();
        let engine = self.host.engine.clone();
        let what = self.random.below(6);
        self.note(format!("interfere {what}: {id}"));
        match what {
            0 => engine.die(&instance),
            1 => engine.die_unseen(&instance),
            2 => engine.set_state(&instance, ContainerState::Frozen),
            3 => engine.set_state(&instance, ContainerState::Running),
            4 => engine.set_state(&instance, ContainerState::Stopped),
            _ => engine.take_away(&instance),
        }
        if self.random.below(2) == 0 {
            engine.announce(RuntimeEvent::Resync);
        }
        self.doubt(&id);
        breathe().await;
    }

    pub(super) async fn heal(&mut self, name: &str) {
        let Some((call, behaviour)) = self.faults.remove(name) else { return };
        self.note(format!("heal: {call:?} {behaviour:?}"));
        self.host.engine.heal(call);
        // What hung goes on.
        breathe().await;
        let busy: Vec<SandboxId> = self
            .known
            .iter()
            .filter(|(_, known)| known.busy.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in busy {
            self.resolve(&id).await;
            self.check_view(&id);
        }
    }

    /// The server dies, and all calls with it.
    pub(super) async fn crash(&mut self) -> anyhow::Result<()> {
        self.note("crash:".to_owned());
        let stops = self.random.below(2) == 0;
        if stops {
            self.host.engine.stop_at(self.random.below(8));
            breathe().await;
        }
        self.tasks.shutdown().await;
        self.expiring.shutdown().await;
        self.host.crash().await;
        for (_, (call, _)) in std::mem::take(&mut self.faults) {
            self.host.engine.heal(call);
        }
        self.clients.iter_mut().for_each(|client| *client = None);
        self.host.restart().await?;
        self.host.watch().await;
        self.settle().await
    }

    /// Heals everything. Then all calls must answer, and all sandboxes be in order.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        for name in self.faults.keys().cloned().collect::<Vec<_>>() {
            self.heal(&name).await;
        }
        self.host.engine.announce(RuntimeEvent::Resync);
        let begun = Instant::now();
        let mut calm = false;
        for look in 1.. {
            breathe().await;
            self.collect();
            while self.expiring.try_join_next().is_some() {}
            let pending = self.clients.iter().flatten().count() + self.expiring.len();
            let faults = self.host.faults().await?;
            if pending == 0 && faults.is_empty() {
                // All is in order, but something may still wait to be tried again.
                if calm {
                    break;
                }
                calm = true;
                self.time.pass(Duration::from_millis(2500)).await;
                continue;
            }
            calm = false;
            if begun.elapsed() > LIMIT {
                self.fail(&format!("does not settle: {faults:#?}"));
            }
            // What is tried again later is tried now. Not faster than the store can follow.
            if look % 10 == 0 {
                self.time.pass(Duration::from_millis(2500)).await;
            }
            if look % 100 == 0 {
                self.host.engine.announce(RuntimeEvent::Resync);
            }
        }
        self.may_fail = false;
        for snapshot in
            self.host.scheduler.catalogue().snapshots(self.host.team, &SnapshotFilter::default())?
        {
            let reference = snapshot.id.parse()?;
            self.host.scheduler.delete_template(self.host.team, &reference).await?;
        }
        let all = self.host.scheduler.list(self.host.team).into_iter();
        self.known = all
            .map(|sandbox| {
                let (state, instance) = (sandbox.state, sandbox.instance.id.clone());
                let (busy, waiting) = (None, VecDeque::new());
                let known = KnownSandbox { instance, state, busy, waiting, doubtful: false };
                (sandbox.id.clone(), known)
            })
            .collect();
        Ok(())
    }
}
