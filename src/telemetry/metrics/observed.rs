//! What workers see of upstreams with every request: how many are in flight, and how long answers take.
//!
//! Each worker notes it in cells of its own, so that a request costs some plain stores and no other core's cache line;
//! a scrape adds them up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Bucket, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::UpstreamMetrics;
use crate::telemetry::cells::Cells;

/// Upper bounds of the buckets, in microseconds: half a millisecond to half a minute. Each costs a line per upstream
/// in a scrape that is to stay below 10 MB.
const BOUNDS: [u64; 12] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

const LATENCY: &str = "waypost_upstream_response_seconds";
const LATENCY_HELP: &str =
    "From the request to the head of the upstream's answer, retries not counted.";
const IN_FLIGHT: &str = "waypost_upstream_in_flight";
const IN_FLIGHT_HELP: &str = "Requests that are at the upstream, or on the way to it.";

/// One worker's cells, written by that worker alone.
pub struct Observer {
    cells: Arc<Cells<Cell>>,
    _not_shared: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl Observer {
    /// A request goes to the upstream.
    pub fn sent(&self, upstream: &UpstreamMetrics) {
        let in_flight = &self.cells.cell(upstream.row.index).in_flight;
        in_flight.store(in_flight.load(Relaxed) + 1, Relaxed);
    }

    /// It has ended, or goes to another one.
    pub fn ended(&self, upstream: &UpstreamMetrics) {
        let in_flight = &self.cells.cell(upstream.row.index).in_flight;
        in_flight.store(in_flight.load(Relaxed).saturating_sub(1), Relaxed);
    }

    /// The upstream has answered, this long after it was asked.
    pub fn answered(&self, upstream: &UpstreamMetrics, after: Duration) {
        let cell = self.cells.cell(upstream.row.index);
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|&bound| micros <= bound);
        let bucket = &cell.buckets[bucket.unwrap_or(BOUNDS.len())];
        bucket.store(bucket.load(Relaxed) + 1, Relaxed);
        let sum = cell.sum_micros.load(Relaxed).saturating_add(micros);
        cell.sum_micros.store(sum, Relaxed);
    }
}

/// What one worker has seen of one upstream.
#[derive(Debug, Default)]
struct Cell {
    in_flight: AtomicU32,
    sum_micros: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

/// What all workers together have seen of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Requests that are at it, or on the way.
    pub in_flight: u64,
    sum_micros: u64,
    buckets: [u64; BOUNDS.len() + 1],
}

impl Observed {
    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The mean time to an answer; `None` before the first.
    pub fn mean(&self) -> Option<Duration> {
        let micros = self.sum_micros.checked_div(self.answers())?;
        Some(Duration::from_micros(micros))
    }

    /// An upper bound of the time that this share of the answers took, as precise as the buckets are; `None` before the
    /// first answer, and beyond the last bucket.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (self.answers() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reaches = |&count: &u64| {
            seen += count;
            seen >= rank
        };
        let bucket = self.buckets.iter().position(reaches)?;
        BOUNDS
            .get(bucket)
            .map(|&bound| Duration::from_micros(bound))
    }

    fn add(&mut self, cell: &Cell) {
        self.in_flight += u64::from(cell.in_flight.load(Relaxed));
        self.sum_micros = self
            .sum_micros
            .saturating_add(cell.sum_micros.load(Relaxed));
        for (bucket, more) in self.buckets.iter_mut().zip(&cell.buckets) {
            *bucket += more.load(Relaxed);
        }
    }

    fn histogram(&self) -> Histogram {
        let mut histogram = Histogram::default();
        let mut cumulative = 0;
        let bucket = |(&bound, count): (&u64, &u64)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound as f64 / 1e6);
            bucket.set_cumulative_count(cumulative);
            bucket
        };
        histogram.set_bucket(BOUNDS.iter().zip(&self.buckets).map(bucket).collect());
        histogram.set_sample_count(self.answers());
        histogram.set_sample_sum(self.sum_micros as f64 / 1e6);
        histogram
    }
}

/// The cells of all workers, and whose each row of them is.
#[derive(Clone, Debug)]
pub(super) struct Observations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    workers: Mutex<Vec<Arc<Cells<Cell>>>>,
    rows: Mutex<Rows>,
    descriptions: [Desc; 2],
}

#[derive(Debug, Default)]
struct Rows {
    names: Vec<Option<Arc<str>>>,
    free: Vec<u32>,
}

/// A row of cells: one upstream's. Free for another one when it is dropped.
#[derive(Debug)]
pub(super) struct Row {
    index: u32,
    of: Observations,
}

impl Observations {
    pub(super) fn new() -> Self {
        let describe = |name: &str, help: &str| {
            let labels = vec!["upstream".to_owned()];
            let description = Desc::new(name.into(), help.into(), labels, Default::default());
            description.expect("names and labels are literals of this file")
        };
        Self(Arc::new(Shared {
            workers: Mutex::default(),
            rows: Mutex::default(),
            descriptions: [
                describe(LATENCY, LATENCY_HELP),
                describe(IN_FLIGHT, IN_FLIGHT_HELP),
            ],
        }))
    }

    /// The cells of one more worker.
    pub(super) fn observer(&self) -> Observer {
        let cells = Arc::<Cells<Cell>>::default();
        lock(&self.0.workers).push(cells.clone());
        Observer {
            cells,
            _not_shared: std::marker::PhantomData,
        }
    }

    /// A row for the upstream of this name.
    pub(super) fn row(&self, name: &str) -> Row {
        let mut rows = lock(&self.0.rows);
        let index = match rows.free.pop() {
            Some(index) => index,
            None => {
                rows.names.push(None);
                u32::try_from(rows.names.len() - 1).expect("as few as there are own series")
            }
        };
        rows.names[index as usize] = Some(name.into());
        Row {
            index,
            of: self.clone(),
        }
    }

    fn observed(&self, row: u32) -> Observed {
        let mut observed = Observed::default();
        for cells in &*lock(&self.0.workers) {
            if let Some(cell) = cells.get(row) {
                observed.add(cell);
            }
        }
        observed
    }
}

impl Row {
    /// What all workers have seen so far.
    pub(super) fn observed(&self) -> Observed {
        self.of.observed(self.index)
    }
}

/// Nobody counts in the row any more: who does holds it.
impl Drop for Row {
    fn drop(&mut self) {
        let mut rows = lock(&self.of.0.rows);
        for cells in &*lock(&self.of.0.workers) {
            if let Some(cell) = cells.get(self.index) {
                cell.in_flight.store(0, Relaxed);
                cell.sum_micros.store(0, Relaxed);
                cell.buckets
                    .iter()
                    .for_each(|bucket| bucket.store(0, Relaxed));
            }
        }
        rows.names[self.index as usize] = None;
        rows.free.push(self.index);
    }
}

impl Collector for Observations {
    fn desc(&self) -> Vec<&Desc> {
        self.0.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let names: Vec<_> = {
            let rows = lock(&self.0.rows);
            let names = (0..).zip(&rows.names);
            names
                .filter_map(|(row, name)| Some((name.clone()?, row)))
                .collect()
        };
        // By name: for a moment the row of an upstream that leaves may stand beside the one of its successor.
        let by_name: BTreeMap<Arc<str>, u32> = names.into_iter().collect();
        let (mut latency, mut in_flight) = (Vec::new(), Vec::new());
        for (name, row) in by_name {
            let observed = self.observed(row);
            let metric = || {
                let mut label = LabelPair::default();
                label.set_name("upstream".to_owned());
                label.set_value(name.to_string());
                Metric::from_label(vec![label])
            };
            let mut of_latency = metric();
            of_latency.set_histogram(observed.histogram());
            latency.push(of_latency);
            let mut gauge = Gauge::default();
            gauge.set_value(observed.in_flight as f64);
            let mut of_in_flight = metric();
            of_in_flight.set_gauge(gauge);
            in_flight.push(of_in_flight);
        }
        vec![
            family(LATENCY, LATENCY_HELP, MetricType::HISTOGRAM, latency),
            family(IN_FLIGHT, IN_FLIGHT_HELP, MetricType::GAUGE, in_flight),
        ]
    }
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no code panics while holding this lock")
}

#[cfg(test)]
mod tests {
    use super::{super::Metrics, *};

    #[test]
    fn what_workers_see_is_added_up_and_goes_with_the_upstream() {
        let metrics = Metrics::new();
        let (one, two) = (metrics.observer(), metrics.observer());
        let upstream = metrics.upstream("10.0.0.1:80");
        one.sent(&upstream);
        two.sent(&upstream);
        two.sent(&upstream);
        two.ended(&upstream);
        for (observer, millis) in [(&one, 1), (&two, 3), (&two, 40)] {
            observer.answered(&upstream, Duration::from_millis(millis));
        }
        let observed = upstream.observed();
        assert_eq!((observed.in_flight, observed.answers()), (2, 3));
        assert_eq!(observed.mean(), Some(Duration::from_micros(14_666)));
        assert_eq!(observed.quantile(0.5), Some(Duration::from_millis(5)));
        assert_eq!(observed.quantile(0.99), Some(Duration::from_millis(50)));
        let text = metrics.encode();
        for line in [
            "waypost_upstream_in_flight{upstream=\"10.0.0.1:80\"} 2\n",
            "waypost_upstream_response_seconds_bucket{upstream=\"10.0.0.1:80\",le=\"0.001\"} 1\n",
            "waypost_upstream_response_seconds_bucket{upstream=\"10.0.0.1:80\",le=\"0.005\"} 2\n",
            "waypost_upstream_response_seconds_bucket{upstream=\"10.0.0.1:80\",le=\"+Inf\"} 3\n",
            "waypost_upstream_response_seconds_sum{upstream=\"10.0.0.1:80\"} 0.044\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        let row = upstream.row.index;
        drop(upstream);
        assert!(!metrics.encode().contains("10.0.0.1:80"));
        let successor = metrics.upstream("10.0.0.2:80");
        assert_eq!(successor.row.index, row);
        assert_eq!(successor.observed(), Observed::default());
    }

    #[test]
    fn an_answer_slower_than_every_bucket_counts_too() {
        let metrics = Metrics::new();
        let upstream = metrics.upstream("10.0.0.1:80");
        assert_eq!(upstream.observed().mean(), None);
        assert_eq!(upstream.observed().quantile(0.5), None);
        metrics
            .observer()
            .answered(&upstream, Duration::from_secs(60));
        let observed = upstream.observed();
        assert_eq!((observed.answers(), observed.quantile(0.5)), (1, None));
    }
}
