//! What can happen in one run: the options, what becomes of each batch, the
//! steps of the callers, and how it all ends.
//!
//! A scenario is decoded from [`Words`], which come from a seed, from proptest
//! or from bytes. A zero stands for the plainest choice everywhere, and every step
//! has words of its own, so a shrunk list of words is a simpler scenario.

use std::fmt;
use std::time::Duration;

use microbatch::Settings;

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) options: Options,
    /// What becomes of each batch, in the order in which the processor gets
    /// them. Those beyond the list succeed at once.
    pub(crate) batches: Vec<Batch>,
    pub(crate) steps: Vec<(Step, Pause)>,
    pub(crate) ending: Ending,
}

/// Times are in milliseconds, and `None` is for ever.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) start: Start,
    pub(crate) max_batch_size: usize,
    pub(crate) max_batch_weight: Option<usize>,
    pub(crate) interval: Option<u64>,
    pub(crate) queue_capacity: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) flush_when_idle: bool,
    /// Of zero, it is another word for `flush_when_idle`.
    pub(crate) flush_cost: Option<u64>,
    pub(crate) cancel_on_drop: bool,
    pub(crate) shutdown_timeout: Option<u64>,
    pub(crate) hook: bool,
    pub(crate) storage: Storage,
    /// How many permits there are at first, if a batch needs one. Then there is a
    /// hook, which is told of batches that get none.
    pub(crate) permits: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// By `build_running`.
    Running,
    /// By `start`, whose future is dropped after so many polls.
    Spawned { polls: Option<usize> },
    /// By a step, if at all.
    NotYet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// None is set.
    Default,
    /// `MemoryStorage`, set by hand.
    Memory,
    NewestFirst,
    Shuffled,
    /// Gives all it has, whatever the limits.
    Greedy,
    /// Gives one job at a time.
    Meagre,
    /// Gives nothing every second time.
    Stutters,
    /// Never gives anything.
    Withholds,
    /// Drops every n-th job that it is given.
    Refuses(usize),
    /// Drops the oldest job it holds when it is given the n-th.
    Forgets(usize),
    PanicsOnAppend(usize),
    /// Panics the n-th time it is asked, with the jobs in hand.
    PanicsOnTake(usize),
    /// Panics the n-th time it is asked, before it touches anything.
    PanicsBeforeTake(usize),
    /// Panics the n-th time it is asked how many jobs it holds, which ends the
    /// loop.
    PanicsOnLen(usize),
    /// Says that it holds one job more than it does.
    Overstates,
    /// Says that it is empty.
    Denies,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Batch {
    pub(crate) call: Call,
    /// Whether the call is made before there is a future.
    pub(crate) early: bool,
    pub(crate) takes: u64,
    pub(crate) ends: Ends,
    pub(crate) hook: Hook,
}

/// What the processor asks of its own `MicroBatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Call {
    #[default]
    Nothing,
    Submit(Caller),
    TrySubmit,
    Flush,
    Shutdown,
    /// Keeps a clone while it works, perhaps the last.
    KeepClone,
    SubmitAndWait,
    FlushAndWait,
    ShutdownAndWait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ends {
    #[default]
    Well,
    Error,
    /// The error panics where it is turned into a boxed one.
    BadError,
    Panic,
    PanicBeforeFuture,
    TooFew,
    TooMany,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hook {
    #[default]
    Quiet,
    Panics,
    Submits,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Nothing,
    Submit {
        times: usize,
        job: Job,
        caller: Caller,
    },
    TrySubmit {
        job: Job,
        caller: Caller,
    },
    Reserve(Reserver),
    SubmitAll {
        jobs: Vec<Job>,
        stays: Stays,
    },
    Flush(Stays),
    Shutdown(Stays),
    Cancel,
    Start {
        polls: Option<usize>,
    },
    Clone,
    DropClone {
        even_the_last: bool,
    },
    /// Drops what some caller waits for, wherever it stands.
    DropCaller(usize),
    Reconfigure([Change; 2]),
    Pause,
    Resume,
    GrantPermits(usize),
    TakePermit,
    CloseSemaphore,
}

/// A change of one of the settings. Times are in milliseconds, and `None` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    MaxBatchSize(usize),
    MaxBatchWeight(usize),
    Interval(Option<u64>),
    MaxInFlight(usize),
    FlushWhenIdle(bool),
    FlushCost(Option<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Job {
    pub(crate) weight: usize,
    /// Weighing it panics.
    pub(crate) bites: bool,
}

/// What a caller does with its handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Caller {
    /// Polls once, before anything else can happen.
    pub(crate) eager: bool,
    /// Holds the handle that long before it touches it.
    pub(crate) hesitates: u64,
    /// Waits for `accepted` first.
    pub(crate) asks: bool,
    pub(crate) stays: Stays,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stays {
    #[default]
    ToTheEnd,
    /// That long, once it has been polled.
    For(u64),
    /// Not even for one poll.
    NotAtAll,
    /// Keeps it until the runtime is gone, polled or not.
    Beyond,
}

/// What a caller does with a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reserver {
    /// Polls once, before it waits in earnest.
    pub(crate) eager: bool,
    pub(crate) stays: Stays,
    pub(crate) permit: Permit,
    pub(crate) job: Job,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    Used {
        after: u64,
    },
    Unused {
        after: u64,
    },
    /// Used when all is over.
    TooLate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    None,
    Yields(usize),
    Sleeps(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Shutdown,
    Cancel,
    DropAll,
    DropStart,
    DropRuntime,
}

impl Scenario {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self::decode(&Words::from_seed(seed))
    }

    pub(crate) fn decode(words: &Words) -> Self {
        let draw = &mut Draw(&words.options);
        let moods = Moods::draw(draw, words.options[OPTIONS - 1]);
        let ending = match moods.hard_end {
            true => draw.pick([Ending::DropRuntime, Ending::DropStart]),
            false => draw.pick([Ending::Shutdown, Ending::Cancel, Ending::DropAll]),
        };
        let mut options = Options::draw(draw, moods);
        let batches = words.batches.iter();
        let batches: Vec<_> = batches
            .map(|words| Batch::draw(&mut Draw(words), moods))
            .collect();
        let steps = words.steps.iter();
        let steps = steps
            .map(|words| {
                let draw = &mut Draw(words);
                (Step::draw(draw, moods), Pause::draw(draw))
            })
            .collect();
        // Who waits for ever for a stop that takes for ever is not hung.
        if options.storage.withholds(options.interval) || batches.iter().any(Batch::may_hang) {
            options.shutdown_timeout.get_or_insert(50);
        }
        let steered = moods.changes && !options.storage.is_plain();
        if steered || moods.permits.is_some() {
            options.shutdown_timeout.get_or_insert(50);
        }
        if moods.permits.is_some() {
            options.hook = true;
        }
        Self {
            options,
            batches,
            steps,
            ending,
        }
    }

    pub(crate) fn batch(&self, number: usize) -> Batch {
        self.batches.get(number).copied().unwrap_or_default()
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:#?}", self.options)?;
        for (number, batch) in self.batches.iter().enumerate() {
            writeln!(f, "batch {number}: {batch:?}")?;
        }
        for (number, (step, pause)) in self.steps.iter().enumerate() {
            writeln!(f, "step {number}: {step:?}, then {pause:?}")?;
        }
        write!(f, "ending: {:?}", self.ending)
    }
}

/// Which kinds of trouble a scenario has. All at once would hide one another:
/// nothing much happens after an early stop.
#[derive(Debug, Clone, Copy)]
struct Moods {
    processor: bool,
    reentrant: bool,
    hangs: bool,
    storage: bool,
    callers: bool,
    stops: bool,
    hard_end: bool,
    busy: bool,
    changes: bool,
    pauses: bool,
    permits: Option<usize>,
}

impl Moods {
    /// `steering` is the word that the options leave over.
    fn draw(draw: &mut Draw<'_>, steering: u16) -> Self {
        let steering = Draw(&[steering]).below(64);
        let (kind, permits) = (steering / 4, steering % 4);
        Self {
            changes: matches!(kind, 8..12 | 14..),
            pauses: matches!(kind, 10..13 | 15),
            permits: (kind >= 13).then_some(permits),
            processor: draw.one_in(2),
            reentrant: draw.one_in(3),
            hangs: draw.one_in(5),
            storage: draw.one_in(4),
            callers: draw.one_in(2),
            stops: draw.one_in(3),
            hard_end: draw.one_in(4),
            busy: draw.one_in(2),
        }
    }
}

impl Options {
    pub(crate) fn flushes_when_idle(&self) -> bool {
        self.flush_when_idle || self.flush_cost == Some(0)
    }

    /// What a flush costs, if that is something.
    pub(crate) fn cost(&self) -> Option<u64> {
        self.flush_cost.filter(|cost| *cost > 0)
    }

    fn draw(draw: &mut Draw<'_>, moods: Moods) -> Self {
        Self {
            start: match draw.below(8) {
                0..3 => Start::Running,
                3..5 => Start::Spawned { polls: None },
                5 if moods.hard_end => Start::Spawned {
                    polls: Some(draw.below(24)),
                },
                5 => Start::Spawned { polls: None },
                _ => Start::NotYet,
            },
            max_batch_size: 1 + draw.below(5),
            max_batch_weight: draw.one_in(2).then(|| 1 + draw.below(8)),
            interval: match draw.below(8) {
                0..7 => Some(1 + draw.below(20) as u64),
                _ => None,
            },
            queue_capacity: 1 + draw.below(6),
            max_in_flight: 1 + draw.below(4),
            flush_when_idle: draw.one_in(3),
            flush_cost: match draw.below(8) {
                0..4 => None,
                4..7 => Some(1 + draw.below(20) as u64),
                _ => draw.pick([Some(u64::MAX), Some(0)]),
            },
            cancel_on_drop: draw.one_in(2),
            shutdown_timeout: match draw.below(4) {
                0..3 => Some(1 + draw.below(60) as u64),
                _ => None,
            },
            hook: draw.one_in(2),
            storage: Storage::draw(draw, moods),
            permits: moods.permits,
        }
    }
}

impl Storage {
    fn draw(draw: &mut Draw<'_>, moods: Moods) -> Self {
        if !moods.storage {
            return match draw.below(6) {
                0..5 => Self::Default,
                _ => Self::Memory,
            };
        }
        let nth = 1 + draw.below(5);
        draw.pick([
            Self::NewestFirst,
            Self::Shuffled,
            Self::Greedy,
            Self::Meagre,
            Self::Stutters,
            Self::Withholds,
            Self::Refuses(nth),
            Self::Forgets(nth),
            Self::PanicsOnAppend(nth),
            Self::PanicsOnTake(nth),
            Self::PanicsBeforeTake(nth),
            Self::PanicsOnLen(3 * nth),
            Self::Overstates,
            Self::Denies,
        ])
    }

    /// Whether it keeps to the order in which it is given the jobs, gives what
    /// it is asked for, and loses nothing.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self, Self::Default | Self::Memory)
    }

    /// Whether it may hold jobs, and give none when it is asked.
    pub(crate) fn may_give_nothing(self) -> bool {
        matches!(
            self,
            Self::Withholds
                | Self::Overstates
                | Self::Stutters
                | Self::PanicsOnTake(_)
                | Self::PanicsBeforeTake(_)
        )
    }

    /// Whether a stop may have to wait for it in vain, if it is not even asked
    /// again.
    fn withholds(self, interval: Option<u64>) -> bool {
        match self {
            Self::Withholds | Self::Overstates => true,
            Self::Stutters | Self::PanicsOnTake(_) | Self::PanicsBeforeTake(_) => {
                interval.is_none()
            }
            _ => false,
        }
    }
}

impl Batch {
    fn draw(draw: &mut Draw<'_>, moods: Moods) -> Self {
        let takes = match draw.below(8) {
            0..4 => 0,
            _ => 1 + draw.below(25) as u64,
        };
        let ends = match draw.below(16) {
            // By far not all, lest the shutdown timeout be all that is seen.
            15 if moods.hangs => Ends::Never,
            8.. if moods.processor => draw.pick([
                Ends::Error,
                Ends::Panic,
                Ends::PanicBeforeFuture,
                Ends::TooFew,
                Ends::TooMany,
                Ends::BadError,
            ]),
            _ => Ends::Well,
        };
        let call = match draw.below(16) {
            8.. if moods.reentrant => {
                let caller = Caller::draw(draw, moods);
                match draw.below(16) {
                    0..5 => Call::Submit(caller),
                    5..8 => Call::TrySubmit,
                    8..11 => Call::Flush,
                    11..13 => Call::KeepClone,
                    13 if moods.hangs => Call::SubmitAndWait,
                    14 if moods.hangs => Call::FlushAndWait,
                    15 if moods.hangs && moods.stops => Call::ShutdownAndWait,
                    _ if moods.stops => Call::Shutdown,
                    _ => Call::Nothing,
                }
            }
            _ => Call::Nothing,
        };
        Self {
            call,
            early: draw.one_in(3),
            takes,
            ends,
            hook: match draw.below(8) {
                6 if moods.processor => Hook::Panics,
                7 if moods.reentrant => Hook::Submits,
                _ => Hook::Quiet,
            },
        }
    }

    pub(crate) fn may_hang(&self) -> bool {
        self.ends == Ends::Never
            || matches!(
                self.call,
                Call::SubmitAndWait | Call::FlushAndWait | Call::ShutdownAndWait
            )
    }
}

impl Step {
    fn draw(draw: &mut Draw<'_>, moods: Moods) -> Self {
        match draw.below(100) {
            0..4 => Self::Nothing,
            34..50 if moods.steers() => Self::steering(draw, moods),
            4..50 => Self::Submit {
                times: match moods.busy {
                    true => 1 + draw.below(6),
                    false => 1 + draw.below(2),
                },
                job: Job::draw(draw),
                caller: Caller::draw(draw, moods),
            },
            50..60 => Self::TrySubmit {
                job: Job::draw(draw),
                caller: Caller::draw(draw, moods),
            },
            60..69 => Self::Reserve(Reserver {
                eager: draw.one_in(3),
                stays: Stays::draw(draw, moods),
                permit: match draw.below(8) {
                    0..4 => Permit::Used {
                        after: draw.below(12) as u64,
                    },
                    4..7 => Permit::Unused {
                        after: draw.below(12) as u64,
                    },
                    _ => Permit::TooLate,
                },
                job: Job::draw(draw),
            }),
            69..75 => Self::SubmitAll {
                stays: Stays::draw(draw, moods),
                jobs: (0..1 + draw.below(6)).map(|_| Job::draw(draw)).collect(),
            },
            75..81 => Self::Flush(Stays::draw(draw, moods)),
            81..85 => Self::Start {
                polls: match draw.below(4) {
                    3 if moods.hard_end => Some(draw.below(24)),
                    _ => None,
                },
            },
            85..88 => Self::Clone,
            88..91 => Self::DropClone {
                even_the_last: moods.stops,
            },
            91..97 if moods.callers => Self::DropCaller(draw.below(16)),
            97..99 if moods.stops => Self::Shutdown(Stays::draw(draw, moods)),
            99 if moods.stops => Self::Cancel,
            _ => Self::Nothing,
        }
    }
}

impl Moods {
    fn steers(self) -> bool {
        self.changes || self.pauses || self.permits.is_some()
    }
}

impl Step {
    fn steering(draw: &mut Draw<'_>, moods: Moods) -> Self {
        match draw.below(12) {
            0..4 if moods.changes => Self::Reconfigure([
                Change::draw(draw),
                match draw.one_in(2) {
                    true => Change::draw(draw),
                    false => Change::Nothing,
                },
            ]),
            4..6 if moods.pauses => Self::Pause,
            6..8 if moods.pauses => Self::Resume,
            0..9 if moods.permits.is_some() => Self::GrantPermits(1 + draw.below(2)),
            9..11 if moods.permits.is_some() => Self::TakePermit,
            11 if moods.permits.is_some() => match draw.one_in(3) {
                true => Self::CloseSemaphore,
                false => Self::TakePermit,
            },
            _ if moods.changes => Self::Reconfigure([Change::draw(draw), Change::Nothing]),
            _ => Self::Resume,
        }
    }
}

impl Change {
    /// A zero means nothing, but for a cost.
    fn draw(draw: &mut Draw<'_>) -> Self {
        let positive = |draw: &mut Draw<'_>, end| match draw.below(16) {
            15 => 0,
            _ => 1 + draw.below(end),
        };
        match draw.below(7) {
            0 => Self::MaxBatchSize(positive(draw, 5)),
            1 => Self::MaxBatchWeight(positive(draw, 8)),
            2 => Self::Interval(Some(positive(draw, 20) as u64)),
            3 => Self::Interval(None),
            4 => Self::MaxInFlight(positive(draw, 4)),
            5 => Self::FlushWhenIdle(draw.one_in(2)),
            _ => Self::FlushCost(match draw.below(4) {
                0 => None,
                1 => draw.pick([Some(u64::MAX), Some(0)]),
                _ => Some(1 + draw.below(20) as u64),
            }),
        }
    }

    pub(crate) fn make(self, settings: &mut Settings) {
        match self {
            Self::Nothing => {}
            Self::MaxBatchSize(size) => settings.max_batch_size = size,
            Self::MaxBatchWeight(weight) => settings.max_batch_weight = weight,
            Self::Interval(interval) => {
                settings.interval = interval.map_or(Duration::MAX, Duration::from_millis);
            }
            Self::MaxInFlight(batches) => settings.max_in_flight = batches,
            Self::FlushWhenIdle(idle) => settings.flush_when_idle = idle,
            Self::FlushCost(cost) => settings.flush_cost = cost.map(Duration::from_millis),
        }
    }
}

impl Job {
    fn draw(draw: &mut Draw<'_>) -> Self {
        Self {
            weight: match draw.below(8) {
                0..7 => draw.below(5),
                _ => draw.below(10),
            },
            bites: draw.one_in(32),
        }
    }
}

impl Caller {
    fn draw(draw: &mut Draw<'_>, moods: Moods) -> Self {
        Self {
            eager: draw.one_in(3),
            hesitates: match draw.below(4) {
                3 => draw.below(20) as u64,
                _ => 0,
            },
            asks: draw.one_in(4),
            stays: Stays::draw(draw, moods),
        }
    }
}

impl Stays {
    fn draw(draw: &mut Draw<'_>, moods: Moods) -> Self {
        match draw.below(8) {
            4 | 5 if moods.callers => Self::For(draw.below(15) as u64),
            6 if moods.callers => Self::NotAtAll,
            7 => Self::Beyond,
            _ => Self::ToTheEnd,
        }
    }
}

impl Pause {
    fn draw(draw: &mut Draw<'_>) -> Self {
        match draw.below(16) {
            0..8 => Self::None,
            8..12 => Self::Yields(1 + draw.below(4)),
            12..15 => Self::Sleeps(1 + draw.below(12) as u64),
            _ => Self::Sleeps(1 + draw.below(60) as u64),
        }
    }
}

pub(crate) type OptionWords = [u16; OPTIONS];
pub(crate) type BatchWords = [u16; 14];
pub(crate) type StepWords = [u16; STEP];

const OPTIONS: usize = 28;
const STEP: usize = 24;
const MAX_STEPS: usize = 30;

/// What a scenario is decoded from: enough words for its longest parts.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    pub(crate) options: OptionWords,
    pub(crate) batches: Vec<BatchWords>,
    pub(crate) steps: Vec<StepWords>,
}

impl Words {
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let batches = random.word() % 12;
        let steps = 1 + random.word() % 30;
        Self {
            options: random.words(),
            batches: (0..batches).map(|_| random.words()).collect(),
            steps: (0..steps).map(|_| random.words()).collect(),
        }
    }

    /// Takes a word from each byte, and zeros once they are used up: how many
    /// batches there are, the options, the batches, and as many steps as there
    /// are bytes left for.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (batches, bytes) = bytes.split_first().unwrap_or((&0, &[]));
        let mut words = bytes.iter().map(|byte| u16::from(*byte) * 0x101);
        let mut word = || words.next().unwrap_or(0);
        let options = std::array::from_fn(|_| word());
        let batches = (0..batches % 12).map(|_| std::array::from_fn(|_| word()));
        let batches = batches.collect();
        let words: Vec<_> = words.take(MAX_STEPS * STEP).collect();
        let steps = words.chunks(STEP);
        let steps = steps.map(|words| std::array::from_fn(|at| *words.get(at).unwrap_or(&0)));
        Self {
            options,
            batches,
            steps: steps.collect(),
        }
    }

    /// Returns the plainest words found of which that still holds.
    pub(crate) fn shrink(&self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut best = self.clone();
        let attempt = |best: &mut Self, change: &dyn Fn(&mut Self)| {
            let mut words = best.clone();
            change(&mut words);
            if fails(&words) {
                *best = words;
            }
        };
        for _ in 0..2 {
            for at in (0..best.steps.len()).rev() {
                attempt(&mut best, &|words| {
                    words.steps.remove(at);
                });
            }
            attempt(&mut best, &|words| words.batches.clear());
            for at in (0..best.batches.len()).rev() {
                attempt(&mut best, &|words| words.batches[at].fill(0));
            }
            for at in 0..best.options.len() {
                attempt(&mut best, &|words| words.options[at] = 0);
            }
            for step in 0..best.steps.len() {
                for at in (0..best.steps[step].len()).rev() {
                    attempt(&mut best, &|words| words.steps[step][at] = 0);
                }
            }
            for batch in 0..best.batches.len() {
                for at in (0..best.batches[batch].len()).rev() {
                    attempt(&mut best, &|words| words.batches[batch][at] = 0);
                }
            }
        }
        best
    }
}

/// Takes choices from words, and the plainest once they are used up.
struct Draw<'a>(&'a [u16]);

impl Draw<'_> {
    /// Grows with the word, so that a smaller word is a smaller number.
    fn below(&mut self, end: usize) -> usize {
        let (word, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        (usize::from(*word) * end) >> 16
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == odds - 1
    }

    fn pick<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[self.below(N)]
    }
}

/// Steele, Lea and Flood (2014), "Fast splittable pseudorandom number
/// generators".
#[derive(Debug, Clone)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn word(&mut self) -> u16 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 48) as u16
    }

    fn words<const N: usize>(&mut self) -> [u16; N] {
        std::array::from_fn(|_| self.word())
    }
}
