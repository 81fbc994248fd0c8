//! Questions of the plugin whose answers are on their way: a pod that is being made is not known everywhere at once.

use std::time::{Duration, Instant};

use loam_cni::ask::{Answer, Ask, ENROL_TIMEOUT};

use super::Question;
use crate::pods::sandbox::Sandbox;
use crate::pods::source::{Source, Standing};
use crate::pods::{Registry, Uid};

/// What can be said at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it should be.
    Good,
    /// It is not, and will not be.
    Bad(String),
    /// It is not yet, for this reason.
    NotYet(String),
    /// Where the pod is was not known before, and has been noted: ask again when that is acted on.
    Moved,
}

impl Verdict {
    /// The verdict on a question.
    pub fn of(question: &Question, source: &mut Source, registry: &Registry) -> Self {
        let (Ask::Add(told) | Ask::Check(told) | Ask::Delete(told)) = &question.ask;
        if let Ask::Delete(_) = question.ask {
            // One that cannot be found is gone, which is found out by itself.
            if let Ok(sandbox) = &question.sandbox {
                source.displace(&told.namespace, &told.name, &sandbox.netns);
            }
            return Self::Moved;
        }
        let uid = match source.standing(&told.namespace, &told.name, &told.uid) {
            Standing::Unknown => return Self::NotYet("the agent has not heard of the pod or its namespace yet".into()),
            Standing::Outside => return Self::Good,
            Standing::Ours(uid) => uid,
        };
        match (&question.ask, &question.sandbox) {
            (_, Err(error)) => Self::Bad(error.to_string()),
            (Ask::Add(_), Ok(sandbox)) if !source.is_placed(&uid, sandbox) => {
                source.place(uid, sandbox.clone());
                Self::Moved
            }
            (_, Ok(sandbox)) => Self::captured(&uid, sandbox, registry),
        }
    }

    fn captured(uid: &Uid, sandbox: &Sandbox, registry: &Registry) -> Self {
        let is_there = |place: &&crate::pods::registry::Place| place.spec.uid == *uid;
        if registry.at_rest().find(is_there).is_some_and(|place| place.spec.netns == sandbox.netns) {
            return Self::Good;
        }
        let reason = registry.views().find(|view| view.uid == uid).map(|view| view.reason.to_owned());
        Self::NotYet(reason.filter(|reason| !reason.is_empty()).unwrap_or_else(|| "being enrolled".into()))
    }
}

/// The questions, at most as many as the plugin's socket lets in.
#[derive(Debug, Default)]
pub struct Waiting(Vec<Waiter>);

#[derive(Debug)]
struct Waiter {
    question: Question,
    until: Instant,
}

impl Waiting {
    /// Takes a question in.
    pub fn take(&mut self, question: Question, now: Instant) {
        let patience = match question.ask {
            Ask::Add(_) => ENROL_TIMEOUT,
            Ask::Check(_) | Ask::Delete(_) => Duration::ZERO,
        };
        self.0.push(Waiter { question, until: now + patience });
    }

    /// Answers those that can be answered, and those that have waited for long enough.
    pub fn answer(&mut self, now: Instant, mut verdict: impl FnMut(&Question) -> Verdict) {
        let waiters = std::mem::take(&mut self.0);
        for waiter in waiters.into_iter().filter(|waiter| !waiter.question.answer.is_closed()) {
            let answer = match (verdict(&waiter.question), &waiter.question.ask) {
                (Verdict::Good, _) | (Verdict::Moved, Ask::Delete(_)) => Answer::default(),
                (Verdict::Bad(error), _) => Answer { error },
                (Verdict::NotYet(why), _) if now >= waiter.until => {
                    Answer { error: format!("the pod belongs to the mesh and is not captured: {why}") }
                }
                (Verdict::NotYet(_) | Verdict::Moved, _) => {
                    self.0.push(waiter);
                    continue;
                }
            };
            // A plugin that was killed does not wait any more.
            let _ = waiter.question.answer.send(answer);
        }
    }

    /// When the first of them has waited for long enough.
    pub fn due_at(&self) -> Option<Instant> {
        self.0.iter().map(|waiter| waiter.until).min()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn asked(waiting: &mut Waiting, now: Instant) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let sandbox = loam_cni::ask::Sandbox {
            namespace: "shop".into(),
            name: "web".into(),
            uid: String::new(),
            netns: "/n".into(),
            inode: 1,
            addresses: vec![],
        };
        let placed = Ok(Sandbox { netns: "/n".into(), ..Sandbox::default() });
        waiting.take(Question { ask: Ask::Add(sandbox), sandbox: placed, answer }, now);
        answered
    }

    #[test]
    fn a_pod_that_is_being_made_is_waited_for_and_no_longer_than_the_bound() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let mut answered = asked(&mut waiting, now);
        waiting.answer(now, |_| Verdict::Moved);
        waiting.answer(now, |_| Verdict::NotYet("being enrolled".into()));
        assert!(answered.try_recv().is_err());
        let due = waiting.due_at().unwrap();
        assert_eq!(due, now + ENROL_TIMEOUT);
        waiting.answer(due, |_| Verdict::NotYet("waiting for the ztunnel".into()));
        assert!(answered.try_recv().unwrap().error.contains("waiting for the ztunnel"));
        assert_eq!(waiting.due_at(), None);
    }

    #[test]
    fn it_is_answered_as_soon_as_it_is_captured_or_cannot_be() {
        for (verdict, error) in [(Verdict::Good, ""), (Verdict::Bad("no such namespace".into()), "no such namespace")] {
            let (mut waiting, now) = (Waiting::default(), Instant::now());
            let mut answered = asked(&mut waiting, now);
            waiting.answer(now, |_| verdict.clone());
            assert_eq!(answered.try_recv().unwrap().error, error);
        }
    }

    #[test]
    fn whoever_does_not_wait_any_more_is_forgotten() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        drop(asked(&mut waiting, now));
        waiting.answer(now, |_| Verdict::NotYet(String::new()));
        assert_eq!(waiting.due_at(), None);
    }
}
