//! What the findings in a row amount to.

use super::{CheckSettings, Initial};

/// Whether an upstream is healthy, and how many findings in a row said otherwise since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It gets requests; so many bad findings in a row make it [`Unhealthy`](Self::Unhealthy).
    Healthy {
        /// Bad ones since the last good one.
        bad: u32,
    },
    /// It gets none, as nothing is known of it: the first finding decides.
    Unproven,
    /// It gets none; so many good findings in a row make it [`Healthy`](Self::Healthy).
    Unhealthy {
        /// Good ones since the last bad one.
        good: u32,
    },
}

impl Verdict {
    /// What nothing is known to contradict.
    pub(super) fn before_any_check(settings: &CheckSettings) -> Self {
        match settings.initial {
            Initial::Healthy => Self::Healthy { bad: 0 },
            Initial::Unhealthy => Self::Unproven,
        }
    }

    /// The good findings in a row since the last bad one, of what is found unhealthy.
    pub(super) fn good_in_a_row(self) -> Option<u32> {
        match self {
            Self::Unhealthy { good } => Some(good),
            Self::Healthy { .. } | Self::Unproven => None,
        }
    }

    pub(super) fn is_healthy(self) -> bool {
        matches!(self, Self::Healthy { .. })
    }

    /// Takes one more finding into account; returns whether it turned the verdict.
    pub(super) fn weigh(&mut self, is_good: bool, settings: &CheckSettings) -> bool {
        let before = self.is_healthy();
        *self = match (*self, is_good) {
            (Self::Healthy { .. }, true) => Self::Healthy { bad: 0 },
            (Self::Healthy { bad }, false) if bad + 1 < settings.unhealthy => {
                Self::Healthy { bad: bad + 1 }
            }
            (Self::Unhealthy { good }, true) if good + 1 < settings.healthy => {
                Self::Unhealthy { good: good + 1 }
            }
            (_, true) => Self::Healthy { bad: 0 },
            (_, false) => Self::Unhealthy { good: 0 },
        };
        before != self.is_healthy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_findings_in_a_row_as_asked_for_turn_the_verdict() {
        use Initial::{Healthy, Unhealthy};
        // Findings: + good, - bad. Verdicts after each: H healthy, u unhealthy.
        for (initial, healthy, unhealthy, findings, expected) in [
            (Healthy, 2, 3, "--+---", "HHHHHu"),
            (Healthy, 2, 3, "+++---+-++-", "HHHHHuuuuHH"),
            (Healthy, 1, 1, "-+-+", "uHuH"),
            (Healthy, 3, 2, "--++-+++--", "HuuuuuuHHu"),
            (Unhealthy, 2, 3, "+-++--", "HHHHHH"),
            (Unhealthy, 2, 3, "-+-++-", "uuuuHH"),
            (Unhealthy, 100, 1, "+-+", "Huu"),
            (Unhealthy, 1, 3, "+", "H"),
            (Unhealthy, 2, 1, "----", "uuuu"),
            (Healthy, 100, 100, "----", "HHHH"),
        ] {
            let settings = CheckSettings {
                healthy,
                unhealthy,
                initial,
                ..CheckSettings::default()
            };
            let mut verdict = Verdict::before_any_check(&settings);
            let mut verdicts = String::new();
            for finding in findings.chars() {
                let before = verdict.is_healthy();
                let has_turned = verdict.weigh(finding == '+', &settings);
                assert_eq!(has_turned, before != verdict.is_healthy());
                verdicts.push(if verdict.is_healthy() { 'H' } else { 'u' });
            }
            let case = format!("{initial:?} {healthy} {unhealthy} {findings}");
            assert_eq!(verdicts, expected, "{case}");
        }
    }
}
