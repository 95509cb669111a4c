"""Makes MLflow's bucket in an object store of our own, where there is none. The environment says where, as it tells MLflow."""

import os
from urllib.parse import urlparse

import boto3
from botocore.exceptions import ClientError

bucket = urlparse(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
try:
    store.head_bucket(Bucket=bucket)
except ClientError as error:
    if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
        raise
    store.create_bucket(Bucket=bucket)
    print(f"The bucket {bucket} is made.")
