//! Asks every worker something on its own thread, between two of its tasks: what they answer holds for all that they
//! do afterwards. Nothing is paid for it while nobody asks.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for one worker; more make whoever asks wait.
const QUESTIONS: usize = 64;

/// All workers, to be asked.
#[derive(Clone)]
pub struct Gate {
    workers: Arc<[mpsc::Sender<Question>]>,
}

/// How many requests are there for the upstream of this key? `None` asks for a sign of life alone.
#[derive(Debug)]
pub struct Question {
    /// A whole key, as stored.
    pub key: Option<Arc<str>>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<usize>,
}

impl Gate {
    /// A gate over so many workers, and what each of them is asked.
    pub fn over(workers: usize) -> (Self, Vec<mpsc::Receiver<Question>>) {
        let (workers, questions): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| mpsc::channel(QUESTIONS)).unzip();
        let workers = workers.into();
        (Self { workers }, questions)
    }

    /// Waits until every worker has answered: from then on no request begins with a table older than the current one
    /// was when this was called. Returns how many requests run that were sent to the upstream of `key` on behalf of
    /// this key. A worker that has ended has none.
    pub async fn pass(&self, key: Option<&Arc<str>>) -> usize {
        let mut answers = Vec::with_capacity(self.workers.len());
        for worker in &*self.workers {
            let (answer, answered) = oneshot::channel();
            let key = key.cloned();
            if worker.send(Question { key, answer }).await.is_ok() {
                answers.push(answered);
            }
        }
        let mut requests = 0;
        for answered in answers {
            requests += answered.await.unwrap_or(0);
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_worker_is_passed_and_counted_but_those_that_have_ended() {
        let (gate, mut questions) = Gate::over(3);
        drop(questions.pop());
        let key: Arc<str> = "/hosts/a/b:80".into();
        let pass = tokio::spawn({
            let (gate, key) = (gate.clone(), key.clone());
            async move { gate.pass(Some(&key)).await }
        });
        let second = questions[1].recv().await.unwrap();
        assert_eq!(second.key, Some(key));
        second.answer.send(2).unwrap();
        tokio::task::yield_now().await;
        assert!(!pass.is_finished(), "the first worker has not answered");
        questions[0].recv().await.unwrap().answer.send(3).unwrap();
        assert_eq!(pass.await.unwrap(), 5);
        drop(questions);
        assert_eq!(gate.pass(None).await, 0);
    }
}
