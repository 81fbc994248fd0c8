//! Takes the plugin's questions from its socket and brings back the answers.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use loam_cni::ask::{Answer, Ask, ENROL_TIMEOUT, MAX_LINE_BYTES};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::pods::sandbox::{NetnsNotFound, Sandbox};
use crate::processes::Processes;

/// Questions that are answered at a time. A node starts some ten pods at once; the rest waits in the socket.
pub const MAX_QUESTIONS: usize = 256;

/// How long a plugin may take to say what it asks, or to hear the answer.
const TALK_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a listener failed, which the next call would meet again.
const PAUSE: Duration = Duration::from_millis(100);

/// A question, and where its answer goes.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub ask: Ask,
    /// The sandbox that it is about, as the agent finds it.
    pub sandbox: Result<Sandbox, NetnsNotFound>,
    /// Who waits for the answer.
    pub answer: oneshot::Sender<Answer>,
}

/// A listener for root alone: who is answered here decides what is captured.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes questions until nobody answers any more.
pub async fn serve(listener: UnixListener, processes: Processes, questions: mpsc::Sender<Question>) {
    let permits = std::sync::Arc::new(Semaphore::new(MAX_QUESTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (processes, questions) = (processes.clone(), questions.clone());
                tokio::spawn(async move {
                    if let Err(error) = talk(stream, &processes, questions).await {
                        tracing::warn!(%error, "talk to the CNI plugin");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "listen to the CNI plugin");
                tokio::time::sleep(PAUSE).await;
            }
        }
        if questions.is_closed() {
            return;
        }
    }
}

async fn talk(stream: UnixStream, processes: &Processes, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    timeout(TALK_TIMEOUT, BufReader::new(reader.take(MAX_LINE_BYTES)).read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Err(error) => Answer { error: format!("the agent cannot read the plugin's question: {error}") },
        Ok(ask) => {
            let (Ask::Add(told) | Ask::Check(told) | Ask::Delete(told)) = &ask;
            let sandbox = Sandbox::told(told, processes);
            let (answer, answered) = oneshot::channel();
            let asked = questions.send(Question { ask, sandbox, answer }).await;
            // A little longer than who answers takes: a late answer says more than none.
            match timeout(ENROL_TIMEOUT + TALK_TIMEOUT / 2, answered).await {
                Ok(Ok(answer)) if asked.is_ok() => answer,
                _ => Answer { error: "the agent is ending; its successor will answer".to_owned() },
            }
        }
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(TALK_TIMEOUT, writer.write_all(&text)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    use loam_cni::ask::{Sandbox as Told, ask};

    fn sandbox() -> Told {
        let (namespace, name) = ("shop".into(), "web".into());
        Told { namespace, name, uid: String::new(), netns: "/n".into(), inode: 1, addresses: vec![] }
    }

    #[tokio::test]
    async fn the_plugin_hears_what_was_answered_and_only_root_may_ask() {
        let socket = std::env::temp_dir().join(format!("loam-cni-serve-{}.sock", std::process::id()));
        let (questions, mut received) = mpsc::channel(1);
        let serving = tokio::spawn(serve(listen(&socket).unwrap(), Processes::new("/nowhere"), questions));
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let path = socket.clone();
        let asking =
            tokio::task::spawn_blocking(move || ask(&path, &Ask::Add(sandbox()), Duration::from_secs(5)).unwrap());
        let question = received.recv().await.unwrap();
        assert_eq!(question.ask, Ask::Add(sandbox()));
        question.answer.send(Answer { error: "not yet".into() }).unwrap();
        assert_eq!(asking.await.unwrap().error, "not yet");
        serving.abort();
        std::fs::remove_file(&socket).unwrap();
    }

    #[tokio::test]
    async fn a_question_of_a_newer_plugin_is_answered_with_what_is_wrong_with_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (questions, _received) = mpsc::channel(1);
        let (mut reader, mut writer) = theirs.into_split();
        writer.write_all(b"{\"ask\":\"move\",\"namespace\":\"shop\"}\n").await.unwrap();
        talk(ours, &Processes::new("/nowhere"), questions).await.unwrap();
        let mut line = String::new();
        reader.read_to_string(&mut line).await.unwrap();
        let answer: Answer = serde_json::from_str(&line).unwrap();
        assert!(answer.error.contains("unknown variant `move`"), "{}", answer.error);
    }
}
