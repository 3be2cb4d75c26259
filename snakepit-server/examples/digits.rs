//! The demo: trains a classifier in one Python worker, kills that worker, and predicts from the others.
//!
//! It shows that the host owns the state. The trained model is a program of the session, so any worker can serve the next
//! call. `cargo xtask demo` runs it.
#![allow(clippy::print_stdout, reason = "a demo prints its progress")]

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use snakepit_server::{Error, Json, SessionHandle, Snakepit, find_python};
use tokio::time::Instant;

const ADAPTER: &str = "snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter";
/// The number of held-out images per call.
const BATCH: usize = 60;
/// The minimum accuracy of a successful run.
const EXPECTED_ACCURACY: f64 = 0.9;

#[derive(Debug, Parser)]
struct Args {
    /// The Python interpreter whose environment has `snakepit_bridge` and scikit-learn.
    #[arg(long, default_value_os_t = find_python())]
    python: PathBuf,
}

type Failure = Box<dyn std::error::Error>;

/// One message of the training stream.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Training {
    Done { done: bool, bytes: u64 },
    Step { step: u64, steps: u64, accuracy: f64 },
}

#[derive(Debug, Deserialize)]
struct DigitsInfo {
    train: usize,
    held_out: usize,
}

/// The arguments of the host tool.
#[derive(Debug, Deserialize, JsonSchema)]
struct Predictions {
    predicted: Vec<u8>,
    expected: Vec<u8>,
}

/// The result of the host tool.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Score {
    correct: usize,
    total: usize,
    /// The number of mistakes for each `expected->predicted`.
    confusions: BTreeMap<String, usize>,
}

#[derive(Debug, Deserialize)]
struct Prediction {
    score: Score,
}

/// The host tool, which Python calls during a prediction.
async fn score_predictions(predictions: Predictions) -> Json<Score> {
    let pairs = || predictions.expected.iter().zip(&predictions.predicted);
    let mut confusions = BTreeMap::new();
    for (expected, predicted) in pairs().filter(|(expected, predicted)| expected != predicted) {
        *confusions.entry(format!("{expected}->{predicted}")).or_default() += 1;
    }
    Json(Score { correct: pairs().filter(|(e, p)| e == p).count(), total: pairs().count(), confusions })
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(accuracy) if accuracy >= EXPECTED_ACCURACY => ExitCode::SUCCESS,
        Ok(accuracy) => {
            println!("accuracy {accuracy:.3} is below the {EXPECTED_ACCURACY} that a successful run reaches");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<f64, Failure> {
    println!("1. start a server with four Python workers");
    let began = Instant::now();
    let snakepit = Snakepit::builder()
        .adapter(ADAPTER)
        .python(args.python)
        .workers(4)
        .listen(([127, 0, 0, 1], 0).into())
        .host_tool("score_predictions", score_predictions)
        .start()
        .await?;
    let mut pids = worker_pids(&snakepit);
    for worker in snakepit.status().workers {
        println!("   {} pid {}", worker.id, worker.pid.unwrap_or_default());
    }
    let address = snakepit.address().map(|address| format!("http://{address}")).unwrap_or_default();
    println!("   ready in {}, serving gRPC on {address}", elapsed_since(began));

    println!("2. train a classifier on scikit-learn's digits, streaming its progress");
    let session = snakepit.session("demo").await?;
    let info = session.call("digits_info").unary::<DigitsInfo>().await?.value;
    let trainer = train(&session, info.train).await?;

    println!("3. the model is a program of the session now; kill the worker that trained it");
    let victim = snakepit.status().workers.into_iter().find(|worker| worker.id.as_str() == trainer);
    let pid = victim.and_then(|worker| worker.pid).map(|pid| Pid::from_raw(pid.cast_signed()));
    let pid = pid.ok_or_else(|| format!("{trainer} has no process to kill"))?;
    kill(pid, Signal::SIGKILL).map_err(|error| format!("cannot kill {trainer}, pid {pid}: {error}"))?;
    println!("   sent SIGKILL to {trainer}, pid {pid}");

    println!(
        "4. predict the held-out images from other workers; each call scores itself with a host tool in Rust"
    );
    let score = predict(&session, info.held_out, &trainer).await?;
    #[allow(clippy::cast_precision_loss, reason = "a few hundred images")]
    let accuracy = score.correct as f64 / score.total as f64;
    println!("   accuracy {accuracy:.3}: {} of {} held-out images", score.correct, score.total);
    let mut confusions: Vec<_> = score.confusions.into_iter().collect();
    confusions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let confusions: Vec<_> =
        confusions.iter().take(3).map(|(pair, count)| format!("{pair} {count}x")).collect();
    println!("   most frequent mistakes: {}", confusions.join(", "));

    println!("5. shut down");
    pids.extend(worker_pids(&snakepit));
    snakepit.shutdown().await?;
    pids.sort_unstable();
    pids.dedup();
    let remaining =
        pids.iter().filter(|pid| kill(Pid::from_raw(pid.cast_signed()), None) != Err(Errno::ESRCH)).count();
    println!("   {} worker processes were started, {remaining} are left", pids.len());

    println!(
        "\nTo do the same by hand, run the first command in a separate terminal:\n  \
         cargo run -q -p snakepit-cli -- serve --adapter {ADAPTER} --workers 4\n  \
         cargo run -q -p snakepit-cli -- stream train_digits --session demo --args '{{\"epochs\": 20}}'\n  \
         cargo run -q -p snakepit-cli -- sessions   # which worker trained last\n  \
         cargo run -q -p snakepit-cli -- workers    # its pid, for `kill -9 PID`\n  \
         cargo run -q -p snakepit-cli -- call predict_digits --session demo --args '{{\"start\": 0, \"count\": 60}}'"
    );
    Ok(if remaining == 0 { accuracy } else { 0.0 })
}

/// Trains, prints the progress, and returns the id of the worker.
async fn train(session: &SessionHandle, images: usize) -> Result<String, Error> {
    let began = Instant::now();
    let call = session.call("train_digits").args(json!({"epochs": 20})).timeout(Duration::from_secs(120));
    let mut steps = call.stream::<Training>().await?;
    let worker = steps.worker().map(ToString::to_string).unwrap_or_default();
    let style = ProgressStyle::with_template("   [{bar:40}] step {pos}/{len}  {msg}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut bytes = 0;
    while let Some(message) = steps.try_next().await? {
        match message {
            Training::Step { step, steps, accuracy } => {
                bar.set_length(steps);
                bar.set_position(step);
                bar.set_message(format!("accuracy {accuracy:.3}"));
            }
            Training::Done { done: true, bytes: size } => bytes = size,
            Training::Done { .. } => {}
        }
    }
    bar.finish();
    println!(
        "   train_digits on {worker}: {images} images, model of {bytes} bytes, {}",
        elapsed_since(began)
    );
    Ok(worker)
}

/// Predicts all held-out images in concurrent calls of one batch each, and adds up the scores.
async fn predict(session: &SessionHandle, images: usize, trainer: &str) -> Result<Score, Failure> {
    let starts: Vec<usize> = (0..images).step_by(BATCH).collect();
    let mut calls = futures_util::stream::iter(starts)
        .map(|start| async move {
            let began = Instant::now();
            let arguments = json!({"start": start, "count": BATCH.min(images - start)});
            // A prediction changes nothing, so a call that was on the killed worker may run again.
            let reply =
                session.call("predict_digits").args(arguments).idempotent().unary::<Prediction>().await?;
            Ok::<_, Error>((start, reply.worker.unwrap_or_default(), reply.value.score, elapsed_since(began)))
        })
        .buffered(3);
    let mut sum = Score { correct: 0, total: 0, confusions: BTreeMap::new() };
    while let Some((start, worker, score, time)) = calls.try_next().await? {
        if &*worker == trainer {
            return Err(format!("{trainer} answered, although it was killed").into());
        }
        println!(
            "   predict_digits from image {start:>3} on {worker}: {}/{} right, {time}",
            score.correct, score.total
        );
        sum.correct += score.correct;
        sum.total += score.total;
        for (pair, count) in score.confusions {
            *sum.confusions.entry(pair).or_default() += count;
        }
    }
    Ok(sum)
}

fn worker_pids(snakepit: &Snakepit) -> Vec<u32> {
    snakepit.status().workers.iter().filter_map(|worker| worker.pid).collect()
}

fn elapsed_since(began: Instant) -> String {
    format!("{:.0?}", began.elapsed())
}
